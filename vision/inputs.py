"""Images that the verbs read for a trained model."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from tqdm import tqdm

from arflows.core.likelihood import Batch
from arflows.core.runtime.errors import UserError
from arflows.data.image_files import read_folder, read_npz
from arflows.data.image_sources import ArrayExamples, FileExamples, uniform_batches
from arflows.data.images import SkippedImage, open_image
from arflows.data.images import convert as convert_image
from arflows.data.read_stats import ReadStats
from arflows.data.store import Store, opened
from arflows.vision.datamodule import ImageDataset, class_numbers
from arflows.vision.model import ImageFlow
from arflows.vision.representation import ImageSpec

LARGEST_BATCH = 256


class ImageInput:
    """Images for a trained model: from a store, an .npz file, a folder of image files, or one image file.

    Attributes:
        count: Number of images, those that will be skipped included.
        names: Names of the images read so far: paths below a folder, else indices in the file.
        skipped: Names of the images that could not be used, by reason.
    """

    def __init__(
        self,
        source: Path | Store,
        flow: ImageFlow,
        *,
        split: str = "test",
        label: str | None = None,
        convert: bool = False,
    ) -> None:
        """Find the images and make sure that they fit the model.

        Args:
            source: The path of the images, or an open store.
            flow: The model; a class-conditional one needs labels, of a store, an .npz file, or subfolders.
            split: Split of a store.
            label: Name of the class of all images, instead of their own labels.
            convert: Crop and reduce image files to the model's size, and turn colour into grey or grey into colour, as
                `arflows vision prepare` does, instead of refusing files of another kind.

        Raises:
            UserError: There are no images, they do not fit the model, or a file is damaged.
        """
        self._flow = flow
        self._label = None if label is None else flow.class_number(label)
        self._numbers: np.ndarray | None = None
        self._stats = ReadStats()
        self.names: list[str] = []
        self._source: ImageDataset | ArrayExamples | FileExamples
        store = opened(source, "vision")
        source = source.path if isinstance(source, Store) else source
        if store is not None:
            _check_fit(source, ImageSpec.from_dict(store.spec), flow.spec)
            self._source = ImageDataset(store, split, labels=flow.classes > 0 and label is None)
            labels = np.asarray(store.array(split, "labels")) if self._source.labels else None
            names: Sequence[str] | None = store.categories.get("labels")
        else:
            self._source = _read_examples(source)
            if not convert:
                form = self._source.form()
                for height, width in sorted(form.sizes):
                    _check_fit(source, ImageSpec(height, width, form.channels), flow.spec)
            if flow.spec.bits != 8:
                raise UserError(
                    f"{source}: a model of images of {flow.spec.bits} bits reads stores alone: prepare one with "
                    f"{flow.spec.options}."
                )
            labels, names = self._source.labels, self._source.classes
        if flow.classes and labels is None and label is None:
            raise UserError(
                f"the model is conditional on {flow.classes} classes, but {source} has no labels: use a store or .npz "
                "file with labels, a folder with a subfolder for each class, or --label."
            )
        if flow.classes and label is None and labels is not None:
            self._numbers = _class_numbers(flow, source, names or [], labels)
        self.count = len(self._source)

    @property
    def skipped(self) -> dict[str, list[str]]:
        """Names of images that could not be used so far, by the reason."""
        return dict(self._stats.skipped)

    def summary(self) -> str:
        """Return a sentence with the number of skipped images, the reasons, and the first names."""
        return self._stats.summary()

    def batches(self, batch_size: int, *, limit: int | None = None, progress: str | None = None) -> Iterator[Batch]:
        """Reads the images in order, from the first.

        Args:
            batch_size: Images in a batch, at most 256.
            limit: Maximum number of images.
            progress: Title of the progress bar; None for no bar.
        """
        self._stats, self.names = ReadStats(), []
        batch_size = min(batch_size, LARGEST_BATCH)
        indices = np.arange(self.count)[:limit]
        with tqdm(total=len(indices), desc=progress, unit=" images", disable=None if progress else True) as bar:
            for chosen in np.array_split(indices, range(batch_size, len(indices), batch_size)):
                yield from self._read(chosen)
                bar.update(len(chosen))

    def _read(self, chosen: Int64[np.ndarray, " batch"]) -> Iterator[Batch]:
        if isinstance(self._source, ImageDataset):
            self.names += map(str, chosen)
            yield self._labelled(self._source.__getitems__(chosen.tolist()))
            return
        spec = self._flow.spec
        for images, labels in uniform_batches(
            self._source, chosen, (spec.height, spec.width), spec.channels, self._stats
        ):
            left_out = {name for names in self.skipped.values() for name in names}
            kept = [index for index in chosen if self._source.name(index) not in left_out]
            in_files = isinstance(self._source, FileExamples)
            self.names += [self._source.name(index) if in_files else str(index) for index in kept]
            batch = {"x": torch.from_numpy(images)}
            if self._flow.classes and labels is not None:
                batch["context"] = torch.from_numpy(labels)
            yield self._labelled(batch)

    def _labelled(self, batch: Batch) -> Batch:
        if self._label is not None:
            return {**batch, "context": torch.full((len(batch["x"]),), self._label)}
        if self._numbers is not None:
            return {**batch, "context": torch.from_numpy(self._numbers[batch["context"].numpy()])}
        return batch


def _class_numbers(
    flow: ImageFlow, source: Path, names: Sequence[str], labels: Int64[np.ndarray, " images"]
) -> Int64[np.ndarray, " classes"]:
    """Return the number by which the model knows each class of some images.

    Classes are matched by name. A model of an older version has no names; its classes are matched by their number, if
    the images have as many.

    Raises:
        UserError: The model does not know a class, or the classes without names differ in number.
    """
    if flow.class_names is not None:
        return class_numbers(names, labels, flow.class_names, source)
    if len(names) != flow.classes:
        raise UserError(
            f"{source} has {len(names)} classes, the model {flow.classes} whose names are not known: use images of all "
            "the classes it was trained on, or --label."
        )
    print(
        f"warning: the model does not know the names of its classes; those of {source} count in their order.",
        file=sys.stderr,
    )
    return np.arange(len(names))


def read_image(path: Path, spec: ImageSpec) -> UInt8[Tensor, "channels height width"]:
    """Reads one image file, cropped and reduced to a model's size as `arflows.data.images` describes.

    Raises:
        UserError: If it is no image, or smaller than the model's.
    """
    if not path.is_file():
        raise UserError(f"there is no image file {path}: check the path.")
    try:
        with open_image(path) as image:
            pixels, _ = convert_image(image, (spec.height, spec.width), spec.channels)
    except SkippedImage as reason:
        raise UserError(f"{path} cannot be used ({reason}): give another image.") from reason
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _read_examples(source: Path) -> ArrayExamples | FileExamples:
    if source.is_dir():
        return read_folder(source)
    if not source.exists():
        raise UserError(f"there is no {source}: give a store, an .npz file, a folder of images, or an image file.")
    if source.suffix == ".npz":
        return read_npz(source)
    try:
        open_image(source).close()
    except SkippedImage as reason:
        raise UserError(
            f"{source} is {reason}, no store and no .npz file: give one of these, an image, or a folder of images."
        ) from reason
    return FileExamples(source.parent, [source.name])


def _check_fit(source: Path, given: ImageSpec, wanted: ImageSpec) -> None:
    if differences := wanted.differences(given):
        raise UserError(
            f"{source} does not fit the model, model ≠ images: {', '.join(differences)}; prepare the images with "
            f"{wanted.options}, or use a model trained on their kind."
        )
