"""A user's own images: an ``.npz`` file, a folder of image files, or a folder with a part for each split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from arflows.core.runtime.errors import UserError
from arflows.data.arrays import npz_names
from arflows.data.arrays import read_npz as arrays_of_npz
from arflows.data.folders import SPLIT_NAMES, printable, walk
from arflows.data.image_sources import ArrayExamples, Examples, FileExamples, ImageSource
from arflows.data.images import SkippedImage, open_image

CLASS_LIMIT = 65536


def read_path(path: Path, test: Path | None = None) -> ImageSource:
    """Read images from a path.

    Args:
        path: An ``.npz`` file (see `read_npz`), a folder of images (see `read_folder`), or a folder that holds
            ``train`` and possibly ``val`` and ``test``, each an ``.npz`` file or a folder.
        test: Where the images of the split ``test`` are, if not inside ``path``.

    Raises:
        UserError: There is nothing usable; the message names the path and the remedy.
    """
    parts = {"train": path}
    if path.is_dir():
        found = {
            split: part
            for split, names in SPLIT_NAMES.items()
            for name in names
            for part in (path / name, path / f"{name}.npz")
            if part.exists()
        }
        if "train" in found:
            parts = found
    if test is not None:
        if "test" in parts:
            raise UserError(f"{path} has test images of its own: leave out test={test}, or give only the train part.")
        parts["test"] = test
    return ImageSource(str(path), {split: _read_part(part) for split, part in parts.items()})


def _read_part(path: Path) -> Examples:
    if path.is_dir():
        return read_folder(path)
    if path.suffix == ".npz" and path.is_file():
        return read_npz(path)
    if not path.exists():
        raise UserError(f"there is no {path}: give a folder of images, an .npz file, or the name of a built-in source.")
    raise UserError(f"{path} is neither a folder of images nor an .npz file: give one of these.")


def read_folder(folder: Path) -> FileExamples:
    """Find every file below a folder; hidden ones are passed over.

    Subfolders are classes if there are at least two of them and no image lies beside them; a file of another kind
    beside them, such as a README, is left out as one. The class is then the name of the first folder below ``folder``.
    Classes are numbered in the order of their names, numbers by their value.

    Raises:
        UserError: The file does not exist.
    """
    paths = sorted(walk(folder))
    if not paths:
        raise UserError(f"{folder} holds no files: give a folder with images in it.")
    tops = sorted({path.split("/", 1)[0] for path in paths if "/" in path}, key=class_order)
    beside = [path for path in paths if "/" not in path]
    if len(tops) < 2 or any(is_image(folder / path) for path in beside):
        return FileExamples(folder, paths)
    paths = [path for path in paths if "/" in path]
    number = {top: index for index, top in enumerate(tops)}
    labels = np.array([number[path.split("/", 1)[0]] for path in paths], np.int64)
    strays = tuple(map(printable, beside))
    return FileExamples(folder, paths, labels, tuple(map(printable, tops)), strays=strays)


def class_order(name: str) -> tuple[bool, int, str]:
    """Return the key by which classes are sorted: numbers by their value, then other names in order."""
    number = name.isdecimal()
    return not number, int(name) if number else 0, name


def is_image(path: Path) -> bool:
    """Return True if a file is an image by its header."""
    try:
        open_image(path).close()
    except SkippedImage:
        return False
    return True


def read_npz(path: Path) -> ArrayExamples:
    """Read ``images`` and, where there, ``labels`` from an ``.npz`` file; other arrays in it are left alone.

    Images may be (n, height, width), (n, height, width, channels) or (n, channels, height, width) with 1 or 3 channels,
    of whole numbers 0…255 or of floats 0…1 (which become round(255 × value)). Labels are class numbers from 0, (n,).

    Raises:
        UserError: The file is damaged or its arrays are not as above; the sentence says in what.
    """
    names = npz_names(path)
    if "images" not in names:
        raise UserError(
            f"{path} has no array 'images' (it has {', '.join(names) or 'none'}): save it with "
            "np.savez(path, images=…, labels=…)."
        )
    arrays = arrays_of_npz(path, only={"images", "labels"})
    images, labels = arrays["images"], arrays.get("labels")
    return array_examples(images, labels, where=str(path))


def array_examples(
    images: np.ndarray, labels: np.ndarray | None, where: str, classes: tuple[str, ...] | None = None
) -> ArrayExamples:
    """Bring arrays of images to 8 bits and channels last, and check the labels.

    Args:
        images: As described in `read_npz`.
        labels: As described in `read_npz`.
        where: Name of the file in messages.
        classes: Names of the classes; their numbers if None.

    Raises:
        UserError: The arrays are of another shape, type or range.
    """
    pixels = _eight_bits(_channels_last(images, where), where)
    if labels is None:
        return ArrayExamples(pixels)
    if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{where}: labels are {labels.dtype} of shape {labels.shape}; give one whole number for each of the "
            f"{len(pixels):,} images, or leave them out."
        )
    if labels.min() < 0 or labels.max() >= CLASS_LIMIT:
        raise UserError(f"{where}: labels run from {labels.min()} to {labels.max()}; number the classes from 0 up.")
    return ArrayExamples(pixels, labels.astype(np.int64), classes or tuple(map(str, range(int(labels.max()) + 1))))


def _channels_last(images: np.ndarray, where: str) -> np.ndarray:
    if images.ndim == 3:
        images = images[..., np.newaxis]
    elif images.ndim == 4 and images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise UserError(
            f"{where}: images of shape {images.shape} cannot be used; give (n, height, width), (n, height, width, "
            "channels) or (n, channels, height, width) with 1 or 3 channels."
        )
    if images.size == 0:
        raise UserError(f"{where} holds no images: its shape is {images.shape}.")
    return images


def _eight_bits(images: np.ndarray, where: str) -> UInt8[np.ndarray, "examples height width channels"]:
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "iuf":
        raise UserError(f"{where}: images of type {images.dtype} cannot be used; save them as uint8.")
    if images.dtype.kind == "f" and (bad := images.size - np.count_nonzero(np.isfinite(images))):
        raise UserError(
            f"{where}: {bad:,} of {images.size:,} pixels are NaN or infinite; correct or leave out these images."
        )
    lowest, highest = images.min(), images.max()
    top = 1 if images.dtype.kind == "f" else 255
    if lowest < 0 or highest > top:
        raise UserError(
            f"{where}: {images.dtype} pixels run from {lowest:g} to {highest:g}, outside 0…{top}; save uint8, or "
            "floats from 0 to 1."
        )
    return np.rint(images * (255 // top)).astype(np.uint8)
