"""Sources of images: splits of examples, in their original sizes and modes, and their conversion to uniform batches."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image
from tqdm import tqdm

from arflows.core.runtime.errors import UserError
from arflows.data.folders import printable
from arflows.data.images import GREY_MODES, WHITE, SkippedImage, convert, open_image
from arflows.data.read_stats import ReadStats

BATCH = 256  # images converted and written together


@dataclass(frozen=True)
class Form:
    """Sizes (height, width) that occur among images, and their number of channels, 1 or 3."""

    sizes: frozenset[tuple[int, int]]
    channels: int

    def __or__(self, other: Form) -> Form:
        return Form(self.sizes | other.sizes, max(self.channels, other.channels))


class Examples(Protocol):
    """The images of one split, each read when it is asked for.

    Attributes:
        labels: The class number of each image, or None.
        classes: Names of the classes by their numbers, or None.
    """

    labels: Int64[np.ndarray, " examples"] | None
    classes: tuple[str, ...] | None
    crop: tuple[int, int, int, int] | None

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the name of an image in messages."""

    def open(self, index: int) -> Image.Image | UInt8[np.ndarray, "height width channels"]:
        """Return one image; raise `SkippedImage` where it cannot be opened."""

    def form(self) -> Form:
        """Find out which sizes and channels occur."""


@dataclass
class ArrayExamples:
    """Images that are in memory."""

    images: UInt8[np.ndarray, "examples height width channels"]
    labels: Int64[np.ndarray, " examples"] | None = None
    classes: tuple[str, ...] | None = None
    crop: tuple[int, int, int, int] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Return the name of an image in messages."""
        return f"image {index}"

    def open(self, index: int) -> UInt8[np.ndarray, "height width channels"]:
        """Return the pixels of one image."""
        return self.images[index]

    def form(self) -> Form:
        """Return the one size and number of channels."""
        _, height, width, channels = self.images.shape
        return Form(frozenset({(height, width)}), channels)


@dataclass
class FileExamples:
    """Images in files of their own, below one folder.

    Attributes:
        folder: The folder.
        paths: Paths of the files below it.
        labels: The class number of each image, or None.
        classes: Names of the classes, or None.
        crop: Part of each image that is taken, or None for all of it.
        strays: Files beside the class folders that are not images, and are left out.
    """

    folder: Path
    paths: Sequence[str]  # relative to the folder
    labels: Int64[np.ndarray, " examples"] | None = None
    classes: tuple[str, ...] | None = None
    crop: tuple[int, int, int, int] | None = None
    strays: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return the file's path below the folder."""
        return printable(self.paths[index])

    def open(self, index: int) -> Image.Image:
        """Open one file, without decoding it."""
        return open_image(self.folder / self.paths[index])

    def form(self) -> Form:
        """Read the header of every file; files that cannot be opened are ignored."""
        sizes, channels = set(), 1
        for index in tqdm(
            range(len(self)), f"reading sizes in {self.folder.name}", unit=" files", leave=False, disable=None
        ):
            try:
                with self.open(index) as image:
                    sizes.add((image.height, image.width))
                    channels = channels if image.mode in GREY_MODES else 3
            except SkippedImage:
                pass
        return Form(frozenset(sizes), channels)


@dataclass
class ImageSource:
    """A set of images with its splits.

    Labels are kept if every split has them. The classes of all splits are numbered as in ``train``.

    Attributes:
        name: The name or path a user gave.
        splits: ``train`` and, where the source itself has them, ``val`` and ``test``.
        notes: Facts about the source for the provenance.
    """

    name: str
    splits: Mapping[str, Examples]
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        labelled = [split for split, examples in self.splits.items() if examples.labels is not None]
        if len(labelled) < len(self.splits):
            if labelled:
                self.notes["labels"] = f"left out: only {', '.join(labelled)} has them"
            for examples in self.splits.values():
                examples.labels = examples.classes = None
            return
        classes = self.classes
        assert classes is not None
        number = {name: index for index, name in enumerate(classes)}
        for split, examples in self.splits.items():
            assert examples.classes is not None
            if unknown := [name for name in examples.classes if name not in number]:
                raise UserError(
                    f"{self.name}: the split {split!r} has the class {unknown[0]!r}, which the split 'train' has not; "
                    "give both the same classes."
                )
            examples.labels = np.array([number[name] for name in examples.classes], np.int64)[examples.labels]
            examples.classes = classes

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes by their numbers; None without labels."""
        return self.splits["train"].classes

    def drop_classes(self, unused: Sequence[int]) -> None:
        """Remove classes that have no training images, and renumber the others; their names stay.

        Args:
            unused: Numbers of the classes.

        Raises:
            UserError: Another split has images of one of these classes.
        """
        classes = self.classes
        assert classes is not None
        kept = [number for number in range(len(classes)) if number not in set(unused)]
        renumbered = np.full(len(classes), -1, np.int64)
        renumbered[kept] = np.arange(len(kept))
        for split, examples in self.splits.items():
            assert examples.labels is not None
            labels = renumbered[examples.labels]
            if len(lost := examples.labels[labels < 0]):
                raise UserError(
                    f"{self.name}: the split {split!r} has images of the class {classes[lost[0]]!r}, of which no "
                    "training image is used: give some, or leave out that class."
                )
            examples.labels, examples.classes = labels, tuple(classes[number] for number in kept)

    def form(self) -> Form:
        """Find out which sizes and channels occur in all splits; for files this reads their headers."""
        return functools.reduce(operator.or_, (examples.form() for examples in self.splits.values()))


def uniform_batches(
    examples: Examples,
    indices: Sequence[int] | np.ndarray,
    size: int | tuple[int, int],
    channels: int,
    stats: ReadStats,
    white: int = WHITE,
) -> Iterator[tuple[UInt8[np.ndarray, "batch channels height width"], Int64[np.ndarray, " batch"] | None]]:
    """Convert images and yield them in batches, in order, with their labels; count conversions and skipped images.

    Args:
        examples: The images.
        indices: Which of them.
        size: Height and width to convert to (see `arflows.data.images`), or one number for both.
        channels: 1 or 3.
        stats: Counts; added to.
        white: Value of white in 16-bit greys.
    """

    def load(index: int) -> tuple[np.ndarray, list[str]] | SkippedImage:
        try:
            opened = examples.open(index)
            with opened if isinstance(opened, Image.Image) else nullcontext():
                return convert(opened, size, channels, examples.crop, white)
        except SkippedImage as reason:
            return reason

    with ThreadPoolExecutor() as threads:  # Pillow decodes and resizes outside the interpreter lock
        for start in range(0, len(indices), BATCH):
            chosen = np.asarray(indices[start : start + BATCH])
            images, kept = [], []
            for index, result in zip(chosen, threads.map(load, chosen), strict=True):
                stats.read += 1
                if isinstance(result, SkippedImage):
                    stats.skipped[str(result)].append(examples.name(index))
                    continue
                images.append(result[0])
                kept.append(index)
                stats.converted.update(result[1])
            stats.written += len(kept)
            if kept:
                batch = np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
                yield batch, None if examples.labels is None else examples.labels[kept]
