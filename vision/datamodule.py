"""From a prepared store to batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from arflows.core.errors import UserError
from arflows.data.store import Store
from arflows.vision.representation import ImageSpec

Batch = dict[str, Tensor]


class ImageDataset(Dataset[Batch]):
    """The images of one split, fetched a batch at a time.

    ``dataset[index]`` and ``dataset.__getitems__(indices)`` give ``{"x": uint8 (batch, channels, height, width),
    "context": int64 (batch,)}``; the context is there if the store has labels and they are wanted. A DataLoader over it
    must not collate the batches again: `ImageDataModule.loader` makes one that does not.
    """

    def __init__(
        self, store: Store, split: str, labels: bool = True, flip: bool = False, limit: int | None = None, seed: int = 0
    ) -> None:
        """Choose the images.

        Args:
            store: A store of images.
            split: Which of its splits.
            labels: Give the labels as context, where the store has them.
            flip: Mirror each image left to right with probability 1/2.
            limit: Keep at most so many images, chosen at random.
            seed: Decides which.

        Raises:
            DataError: The store has no such split.
        """
        self.store = store
        self.split = split
        self.flip = flip
        fields = store.fields(split)
        self.labels = labels and "labels" in fields
        count = store.splits[split]
        self.kept: Int64[np.ndarray, " examples"] | None = None
        if limit is not None and limit < count:
            self.kept = np.sort(np.random.default_rng(seed).permutation(count)[:limit])
        self.count = count if self.kept is None else len(self.kept)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        """Fetch a batch: one gather from the memory map."""
        rows = np.asarray(indices) if self.kept is None else self.kept[indices]
        images: UInt8[Tensor, "batch channels height width"]
        images = torch.from_numpy(self.store.array(self.split, "images")[rows])
        if self.flip:
            mirrored = torch.rand(len(rows)) < 0.5
            images[mirrored] = images[mirrored].flip(-1)
        if not self.labels:
            return {"x": images}
        return {"x": images, "context": torch.from_numpy(self.store.array(self.split, "labels")[rows])}


class ResumableOrder(DistributedSampler[Batch]):
    """The order of one process's training examples, a function of seed and epoch alone, to be taken up in mid-epoch.

    Args:
        dataset: The examples of all processes.
        seed: Decides the order.
        epoch: The first epoch, at which a resumed run goes on.
        done: Examples of that epoch that this process has had already.
        options: Of `DistributedSampler`.
    """

    def __init__(self, dataset: Dataset[Batch], seed: int, epoch: int = 0, done: int = 0, **options: Any) -> None:
        super().__init__(dataset, shuffle=True, seed=seed, drop_last=True, **options)
        # Lightning tells the epoch only when workers have begun to fetch ahead.
        self.set_epoch(epoch)
        self._resumed_epoch = epoch
        self._done = done

    def __iter__(self) -> Iterator[Any]:
        return islice(super().__iter__(), self._done if self.epoch == self._resumed_epoch else 0, None)


class ImageDataModule(lightning.LightningDataModule):
    """Batches of images for training, validation and testing.

    A batch is ``{"x": uint8 (batch, channels, height, width), "context": int64 labels (batch,)}``. Training batches are
    shuffled anew each epoch and are all of full size; validation and test batches hold every image once, in order. With
    several processes each trains on its own share of an epoch.

    Attributes:
        store: The open store.
        spec: The kind of images it holds.
        classes: The names of its classes; empty if it has no labels.
        labels: Whether batches bring the labels that the store has; a model without classes wants none.
    """

    def __init__(
        self,
        store: Path,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        workers: int = 0,
        flip: bool = False,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        """Open the store.

        Args:
            store: The file that `arflows vision prepare` wrote.
            batch_size: Images in a training batch, on each device.
            eval_batch_size: Images in a validation or test batch, on each device.
            workers: Processes that fetch batches ahead; a store in local memory or on a fast disk needs none.
            flip: Mirror training images left to right with probability 1/2.
            limit: Use at most so many images of each split, chosen at random.
            seed: Decides the order of the images, and which are used with a limit.

        Raises:
            DataError: The file is no store of images.
            UserError: A setting is out of range.
        """
        super().__init__()
        settings = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "limit": limit}
        for name, value in settings.items():
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: give a number from 1 up.")
        if workers < 0:
            raise UserError(f"workers is {workers}: give 0 or more.")
        self.store = Store(store, expect_domain="vision")
        self.spec = ImageSpec.from_dict(self.store.spec)
        self.classes: list[str] = self.store.categories.get("labels", [])
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.workers = workers
        self.labels = True
        self.flip = flip
        self.limit = limit
        self.seed = seed
        self._progress = {"epoch": 0, "batches": 0}

    @property
    def class_count(self) -> int:
        """Number of classes; 0 if there are no labels."""
        return len(self.classes)

    def dataset(self, split: str) -> ImageDataset:
        """Return the images of a split in order, not mirrored.

        Raises:
            DataError: The store has no such split.
        """
        return ImageDataset(self.store, split, self.labels, limit=self.limit, seed=self.seed)

    def loader(self, split: str) -> DataLoader[Batch]:
        """Return batches of ``eval_batch_size`` that hold every image of a split once, in order, not mirrored.

        Raises:
            DataError: The store has no such split.
        """
        return self._loader(self.dataset(split), self.eval_batch_size)

    def initialization_batch(self) -> Batch:
        """Return one training batch, the same in every process and run, for data-dependent initialisation."""
        dataset = self.dataset("train")
        order = np.random.default_rng(self.seed).permutation(len(dataset))
        return dataset.__getitems__(order[: self.batch_size].tolist())

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the shuffled training batches of this process.

        Raises:
            UserError: There are fewer images than one batch takes.
        """
        processes = self.trainer.world_size if self.trainer else 1
        dataset = ImageDataset(self.store, "train", self.labels, self.flip, self.limit, self.seed)
        if len(dataset) < self.batch_size * processes:
            share = f" in each of {processes} processes" if processes > 1 else ""
            raise UserError(
                f"{self.store.path} gives {len(dataset):,} training images, fewer than one batch of {self.batch_size}"
                f"{share}: lower batch_size."
            )
        sampler = ResumableOrder(
            dataset,
            self.seed,
            self._progress["epoch"],
            self._progress["batches"] * self.batch_size,
            num_replicas=processes,
            rank=self.trainer.global_rank if self.trainer else 0,
        )
        self._progress = {"epoch": 0, "batches": 0}
        return self._loader(dataset, self.batch_size, sampler=sampler, drop_last=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch at hand, and how many of its batches have been trained on."""
        assert self.trainer is not None
        total = self.trainer.fit_loop.epoch_loop.batch_progress.total
        epoch, batches = divmod(total.processed, self.trainer.num_training_batches)  # type: ignore[attr-defined]
        return {"epoch": int(epoch), "batches": int(batches)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Make the next training batches those that come after the ones trained on."""
        self._progress = state_dict

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Return the validation batches; an empty list, which makes Lightning skip validation, if there are none."""
        return self.loader("val") if "val" in self.store.splits else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test batches.

        Raises:
            DataError: The store has no test images.
        """
        return self.loader("test")

    def _loader(self, dataset: ImageDataset, batch_size: int, **options: Any) -> DataLoader[Batch]:
        return DataLoader(
            dataset,
            batch_size,
            num_workers=self.workers,
            collate_fn=_as_fetched,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
            **options,
        )


def _as_fetched(batch: Any) -> Any:
    """Collate nothing: `ImageDataset.__getitems__` returns whole batches."""
    return batch
