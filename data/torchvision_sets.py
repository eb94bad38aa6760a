"""The public image sets that torchvision can fetch and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from arflows.data.errors import DataError
from arflows.data.image_files import array_examples
from arflows.data.image_sources import Examples, FileExamples, ImageSource

# The central 148×148 of the aligned 178×218 faces: left, top, right, bottom. RealNVP (Dinh et al. 2017, section 4.1).
CELEBA_CROP = (15, 40, 163, 188)

TORCHVISION_SETS = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "svhn": "SVHN",
    "celeba": "CelebA",
}
# How torchvision is asked for each split: by a flag, save where said otherwise.
TRAIN_TEST: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
SPLITS: dict[str, dict[str, dict[str, Any]]] = {
    "svhn": {"train": {"split": "train"}, "test": {"split": "test"}},
    "celeba": {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
}


def torchvision_set(name: str, root: Path, download: bool = False) -> ImageSource:
    """Read one of torchvision's image sets, with the splits its authors made.

    CelebA faces are cropped to their central 148×148 before anything else and have no classes.

    Args:
        name: A key of `TORCHVISION_SETS`.
        root: The folder that torchvision keeps its files in.
        download: Fetch them if they are not there.

    Raises:
        DataError: The set is not there and may not, or cannot, be downloaded.
    """
    read = _celeba if name == "celeba" else _arrays
    splits = {
        split: read(_load(name, root, download, **options)) for split, options in SPLITS.get(name, TRAIN_TEST).items()
    }
    return ImageSource(name, splits, {"origin": f"torchvision.datasets.{TORCHVISION_SETS[name]} in {root}"})


def _load(name: str, root: Path, download: bool, **options: Any) -> Any:
    from torchvision import datasets

    dataset = getattr(datasets, TORCHVISION_SETS[name])
    try:
        return dataset(root, download=False, **options)
    except RuntimeError as error:
        if not download:
            raise DataError(
                f"{name} is not, or not whole, in {root}: add --download true to fetch it, or say with --root "
                "where it is."
            ) from error
    try:
        root.mkdir(parents=True, exist_ok=True)
        return dataset(root, download=True, **options)
    except (OSError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split()).rstrip(".:")
        raise DataError(
            f"{name} could not be downloaded to {root} ({reason}): check the network, or put its files there yourself."
        ) from error


def _arrays(dataset: Any) -> Examples:
    labels = np.asarray(dataset.labels if hasattr(dataset, "labels") else dataset.targets)
    classes = getattr(dataset, "classes", None)
    name = type(dataset).__name__
    return array_examples(np.asarray(dataset.data), labels, name, tuple(classes) if classes else None)


def _celeba(dataset: Any) -> Examples:
    folder = Path(dataset.root) / dataset.base_folder / "img_align_celeba"
    return FileExamples(folder, list(dataset.filename), crop=CELEBA_CROP)
