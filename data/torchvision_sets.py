"""The public image sets that torchvision can fetch and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from arflows.core.runtime.errors import UserError
from arflows.data.archives import unpack_tar
from arflows.data.downloads import Remote, fetch
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
_TORONTO = "https://www.cs.toronto.edu/~kriz/"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
FILES: dict[str, tuple[str, list[Remote]]] = {
    "cifar10": (
        ".",
        [
            Remote(
                f"{_TORONTO}cifar-10-python.tar.gz", "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
            )
        ],
    ),
    "cifar100": (
        ".",
        [
            Remote(
                f"{_TORONTO}cifar-100-python.tar.gz", "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
            )
        ],
    ),
    "mnist": (
        "MNIST/raw",
        [
            Remote(
                f"{_MNIST}train-images-idx3-ubyte.gz",
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            Remote(
                f"{_MNIST}train-labels-idx1-ubyte.gz",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            Remote(
                f"{_MNIST}t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
            ),
            Remote(
                f"{_MNIST}t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
            ),
        ],
    ),
    "fashion_mnist": (
        "FashionMNIST/raw",
        [
            Remote(
                f"{_FASHION}train-images-idx3-ubyte.gz",
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            Remote(
                f"{_FASHION}train-labels-idx1-ubyte.gz",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            Remote(
                f"{_FASHION}t10k-images-idx3-ubyte.gz",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            Remote(
                f"{_FASHION}t10k-labels-idx1-ubyte.gz",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        ],
    ),
    "svhn": (
        ".",
        [
            Remote(f"{_SVHN}train_32x32.mat", "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
            Remote(f"{_SVHN}test_32x32.mat", "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
        ],
    ),
}
"""Files of each set, and the folder below the root where torchvision looks for them. CelebA is on Google Drive, which
answers with a web page; torchvision downloads it."""

# Arguments of torchvision for each split.
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
        UserError: The set is not there and may not, or cannot, be downloaded.
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
            raise UserError(
                f"{name} is not, or not whole, in {root}: add --download true to fetch it, or say with --root "
                "where it is."
            ) from error
    if name in FILES:  # torchvision finds them where it would put them, and unpacks them
        below, files = FILES[name]
        for path in fetch(files, root / below):
            if path.name.endswith(".tar.gz"):
                unpack_tar(path, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        return dataset(root, download=True, **options)
    except (OSError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split()).rstrip(".:")
        raise UserError(
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
