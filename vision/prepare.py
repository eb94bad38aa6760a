"""Conversion of image sources to a store: ``arflows vision prepare --source digits --out digits.h5``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import refuse_existing
from arflows.core.runtime.option_types import Fraction, PositiveInt
from arflows.data import builtin
from arflows.data.image_files import read_path
from arflows.data.image_sources import ImageSource, uniform_batches
from arflows.data.images import WHITE
from arflows.data.read_stats import ReadStats
from arflows.data.store_writer import StoreWriter
from arflows.data.torchvision_sets import TORCHVISION_SETS, torchvision_set
from arflows.vision.representation import ImageSpec

MOST_LISTED = 100
"""Classes, at most, whose counts are printed."""

BUILTIN = {"digits": builtin.digits, "patches": builtin.patches}


def prepare(
    source: str,
    out: Path,
    test: Path | None = None,
    image_size: PositiveInt | str | None = None,
    channels: Literal[1, 3] | None = None,
    white: PositiveInt = WHITE,
    val_fraction: Fraction = 0.05,
    limit: PositiveInt | None = None,
    root: Path | None = None,
    download: bool = False,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Make a store of images that `train`, `score` and `evaluate` read.

    A folder may hold image files of any kind; its subfolders are classes if there are at least two and no file lies
    beside them. A folder that holds train and test (and val), as folders or .npz files, brings its own splits. Files
    that are damaged, not images, or too small are left out and listed in the store.

    Args:
        source: digits, patches (both built in), cifar10, cifar100, mnist, fashion_mnist, svhn, celeba, or the path of a
            folder or of an .npz file with the arrays images and, if wanted, labels.
        out: Store to write, such as cifar10.h5.
        test: A folder or .npz file with the test images, if the source has none of its own.
        image_size: Crop the images to their central part and reduce them to this height and width, as 32 or 24,32;
            by default all must have one size already.
        channels: 1 for grey, 3 for colour; by default as in the images.
        white: Value of white in 16-bit grey images; 4095 for 12 bits in files of 16.
        val_fraction: The part of the training images set aside for validation, if the source sets none aside.
        limit: Maximum number of images from each split of the source, chosen at random.
        root: Folder of the downloadable sets; by default ~/.cache/arflows.
        download: Download a set that is missing.
        seed: Seed of the choice of images.
        overwrite: Replace an existing store.
    """
    refuse_existing(out, overwrite)
    if not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}: give a number from 0 up to, not including, 1.")
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}: give a number from 1 up.")
    if not 1 <= white <= WHITE:
        raise UserError(f"white is {white}: give a number from 1 to {WHITE}.")
    images = _open(source, test, root, download)
    spec = _spec(images, None if image_size is None else _size(image_size), channels)
    chosen = _choose(images, val_fraction, limit, np.random.default_rng(seed))
    unused = _drop_unused_classes(images, chosen)
    stats = {split: ReadStats() for split in chosen}
    for split, (origin, _) in chosen.items():
        if split == origin and (strays := getattr(images.splits[origin], "strays", ())):
            stats[split].read += len(strays)
            stats[split].skipped["not an image"] += strays
    classes = images.classes
    counts = {split: np.zeros(len(classes or ()), np.int64) for split in chosen}
    with StoreWriter(
        out,
        domain="vision",
        spec=spec.as_dict(),
        categories=None if classes is None else {"labels": classes},
        provenance={
            "source": images.name,
            **images.notes,
            "available": {split: len(examples) for split, examples in images.splits.items()},
            "options": {"val_fraction": val_fraction, "limit": limit, "seed": seed, "white": white},
        },
    ) as writer:
        for split, (origin, indices) in chosen.items():
            with tqdm(total=len(indices), desc=f"preparing {split}", leave=False, disable=None) as progress:
                for batch, labels in uniform_batches(
                    images.splits[origin], indices, (spec.height, spec.width), spec.channels, stats[split], white
                ):
                    writer.append(split, {"images": batch} | ({} if labels is None else {"labels": labels}))
                    if labels is not None:
                        counts[split] += np.bincount(labels, minlength=len(counts[split]))
                    progress.update(stats[split].read - progress.n)
            if not stats[split].written:
                raise UserError(f"{images.name}: none of the images for {split} can be used: {stats[split].summary()}.")
        writer.provenance["splits"] = {split: each.as_dict() for split, each in stats.items()}
    _report(out, images, spec, stats)
    _report_classes(images, counts, unused)


def _open(source: str, test: Path | None, root: Path | None, download: bool) -> ImageSource:
    if test is not None and (source in BUILTIN or source in TORCHVISION_SETS):
        raise UserError(f"{source} has test images of its own: leave out --test.")
    if source in BUILTIN:
        return BUILTIN[source]()
    if source in TORCHVISION_SETS:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return torchvision_set(source, root or cache / "arflows", download)
    if not Path(source).exists():
        names = ", ".join([*BUILTIN, *TORCHVISION_SETS])
        raise UserError(f"there is no source {source!r}: give the path of a folder or .npz file, or one of {names}.")
    return read_path(Path(source), test)


def _size(text: int | str) -> tuple[int, int]:
    """Read a height and width: one number for both, or two with a comma, or × or x, between them."""
    numbers = re.split(r"[,x×]", str(text).strip("[]()"))
    if len(numbers) > 2 or not all(number.strip().isdecimal() and int(number) for number in numbers):
        raise UserError(f"image_size is {text}: give a number from 1 up, or height and width as 24,32.")
    return int(numbers[0]), int(numbers[-1])


def _spec(images: ImageSource, image_size: tuple[int, int] | None, channels: int | None) -> ImageSpec:
    """Complete the settings the user left open by those of the images themselves."""
    if image_size is None or channels is None:
        form = images.form()
        if not form.sizes:
            raise UserError(f"{images.name} holds no image that can be read: give a folder of images or an .npz file.")
        channels = channels or form.channels
        if image_size is None:
            smallest, largest = min(form.sizes), max(form.sizes)
            if len(form.sizes) > 1:
                what = f"{'×'.join(map(str, smallest))} to {'×'.join(map(str, largest))}"
                raise UserError(f"the images in {images.name} are {what}, not of one size: add --image_size.")
            image_size = smallest
    return ImageSpec(*image_size, channels)


def _choose(
    images: ImageSource, val_fraction: float, limit: int | None, generator: np.random.Generator
) -> dict[str, tuple[str, np.ndarray]]:
    """Return, for each split of the store, the split of the source and the indices of its images."""
    chosen = {}
    for split, examples in images.splits.items():
        chosen[split] = split, np.sort(generator.permutation(len(examples))[:limit])
    if "val" not in chosen and val_fraction:
        _, indices = chosen["train"]
        aside = np.zeros(len(indices), bool)
        aside[generator.permutation(len(indices))[: max(1, round(val_fraction * len(indices)))]] = True
        if aside.all():
            raise UserError(f"{images.name} has only {len(indices)} training image: nothing is left with val_fraction.")
        chosen = {"train": ("train", indices[~aside]), "val": ("train", indices[aside])} | {
            split: choice for split, choice in chosen.items() if split != "train"
        }
    return chosen


def _drop_unused_classes(images: ImageSource, chosen: dict[str, tuple[str, np.ndarray]]) -> list[str]:
    """Remove classes of which no image is chosen for training; return their names."""
    labels = images.splits["train"].labels
    if labels is None or images.classes is None:
        return []
    counts = np.bincount(labels[chosen["train"][1]], minlength=len(images.classes))
    unused = np.flatnonzero(counts == 0)
    names = [images.classes[number] for number in unused]
    if len(unused):
        images.drop_classes(unused.tolist())
    return names


def _report_classes(images: ImageSource, counts: dict[str, np.ndarray], unused: list[str]) -> None:
    if images.classes is None:
        return
    for number, name in enumerate(images.classes):
        if number == MOST_LISTED:
            print(f"  … and {len(images.classes) - MOST_LISTED} more classes")
            break
        print(f"  class {name}: {', '.join(f'{split} {count[number]:,}' for split, count in counts.items())}")
    if unused:
        print(
            f"  left out, as they have no training images: the classes {', '.join(unused)}; the others keep their names"
        )


def _report(out: Path, images: ImageSource, spec: ImageSpec, stats: dict[str, ReadStats]) -> None:
    classes = f"{len(images.classes)} classes" if images.classes else "no labels"
    print(f"{out}: {spec.height}×{spec.width}×{spec.channels}, {classes}, from {images.name}")
    for split, counts in stats.items():
        print(f"  {split:<5} {counts.written:>9,} images")
        for step, count in sorted(counts.converted.items()):
            print(f"        {count:>9,} of them converted: {step}")
        if counts.skipped:
            print(f"        {sum(map(len, counts.skipped.values())):>9,} skipped: {counts.summary()}")
