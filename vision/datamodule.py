"""Batches of images from a prepared store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from arflows.core.runtime.errors import match_names
from arflows.data.batches import Batch, StoreDataModule, StoreDataset
from arflows.data.store import Store
from arflows.vision.representation import ImageSpec


class ImageDataset(StoreDataset):
    """The images of one split, fetched a batch at a time; see `StoreDataset`.

    A batch is ``{"x": uint8 (batch, channels, height, width), "context": int64 (batch,)}``; the context is there if the
    store has labels and they are wanted. Pixels of more than 8 bits are int32.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        labels: bool = True,
        flip: bool = False,
        limit: int | None = None,
        seed: int = 0,
        classes: Sequence[str] | None = None,
    ) -> None:
        """Choose the images.

        Args:
            store: A store of images.
            split: Which of its splits.
            labels: Give the labels as context, where the store has them.
            flip: Mirror each image left to right with probability 1/2, anew in each epoch.
            limit: Maximum number of images, chosen at random.
            seed: Decides which, and which are mirrored.
            classes: Names of a model's classes: labels become the numbers of these names. None for the store's own.

        Raises:
            UserError: The store has no such split, or images of a class that ``classes`` lacks.
        """
        self.flip = flip
        self._seed = seed
        self._coins: tuple[int, np.ndarray] | None = None
        self.labels = labels and "labels" in store.fields(split)
        super().__init__(store, split, {"x": "images"} | ({"context": "labels"} if self.labels else {}), limit, seed)
        self._numbers: np.ndarray | None = None
        if self.labels and classes is not None:
            self._numbers = class_numbers(
                store.categories["labels"], np.asarray(store.array(split, "labels")), classes, store.path
            )

    def __getitems__(self, indices: list[int]) -> Batch:
        """Fetch a batch."""
        batch = super().__getitems__(indices)
        if batch["x"].dtype != torch.uint8:
            batch["x"] = batch["x"].to(torch.int32)  # PyTorch computes little with uint16
        if self._numbers is not None:
            batch["context"] = torch.from_numpy(self._numbers[batch["context"].numpy()])
        if self.flip:
            images, mirrored = batch["x"], self._mirrored(indices)
            images[mirrored] = images[mirrored].flip(-1)
        return batch

    def _mirrored(self, indices: list[int]) -> Bool[Tensor, " batch"]:
        """True for each image that is mirrored, a function of seed, epoch and image alone."""
        epochs, places = self.places(indices)
        mirrored = np.zeros(len(places), bool)
        for epoch in np.unique(epochs):
            if self._coins is None or self._coins[0] != epoch:
                self._coins = epoch, np.random.default_rng([self._seed, epoch]).random(len(self)) < 0.5
            mirrored[epochs == epoch] = self._coins[1][places[epochs == epoch]]
        return torch.from_numpy(mirrored)


def class_numbers(
    names: Sequence[str], labels: Int64[np.ndarray, " images"], known: Sequence[str], where: object
) -> Int64[np.ndarray, " names"]:
    """Return the number by which a model knows each class of some images; −1 for classes without images.

    Args:
        names: Names of the images' classes.
        labels: Their numbers among ``names``, one for each image.
        known: Names of the model's classes.
        where: The images' origin.

    Raises:
        UserError: The model does not know a class that has images.
    """
    numbers = np.full(len(names), -1, np.int64)
    present = np.unique(labels)
    numbers[present] = match_names("class", [names[label] for label in present], known, where)
    return numbers


class ImageDataModule(StoreDataModule):
    """Batches of images for training, validation and testing; see `StoreDataModule`.

    A batch is ``{"x": uint8 (batch, channels, height, width), "context": int64 labels (batch,)}``.

    Attributes:
        spec: The kind of images it holds.
        classes: The names of its classes; empty if it has no labels.
        labels: True if batches contain the labels of the store; False for a model without classes.
        model_classes: Names of a model's classes, by which labels are numbered; None for the store's own numbers.
    """

    def __init__(
        self,
        store: Path,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        flip: bool = False,
        **options: Any,
    ) -> None:
        """Open the store.

        Args:
            store: The file that `arflows vision prepare` wrote.
            batch_size: Images in a training batch, on each device.
            eval_batch_size: Images in a validation or test batch, on each device.
            flip: Mirror training images left to right with probability 1/2.
            **options: Options of `StoreDataModule`: workers, limit and seed.

        Raises:
            UserError: The file is no store of images or of another version, or a setting is out of range.
        """
        super().__init__(store, "vision", batch_size, eval_batch_size, **options)
        self.spec = ImageSpec.from_dict(self.store.spec)
        self.classes: list[str] = self.store.categories.get("labels", [])
        self.labels = True
        self.model_classes: Sequence[str] | None = None
        self.flip = flip

    @property
    def class_count(self) -> int:
        """Number of classes; 0 if there are no labels."""
        return len(self.classes)

    def dataset(self, split: str, training: bool = False) -> ImageDataset:
        """Return the images of a split in order, mirrored at random only in training."""
        return ImageDataset(
            self.store, split, self.labels, self.flip and training, self.limit, self.seed, self.model_classes
        )
