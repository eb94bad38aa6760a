"""Data sets and data modules that read batches from a store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from arflows.core.runtime.errors import UserError
from arflows.data.store import Store

Batch = dict[str, Tensor]

INITIAL_EXAMPLES = 256
"""Maximum number of training examples for data-dependent initialisation."""


class StoreDataset(Dataset[Batch]):
    """The examples of one split, fetched a batch at a time.

    ``dataset[index]`` and ``dataset.__getitems__(indices)`` give a tensor (batch, …) for each field. A DataLoader over
    it must not collate the batches again: `StoreDataModule.loader` makes one that does not.
    """

    def __init__(
        self, store: Store, split: str, fields: Mapping[str, str], limit: int | None = None, seed: int = 0
    ) -> None:
        """Choose the examples.

        Args:
            store: The store.
            split: Which of its splits.
            fields: For each name in a batch the field of the store.
            limit: Maximum number of examples, chosen at random.
            seed: Decides which.

        Raises:
            UserError: The store has no such split.
        """
        self.store = store
        self.split = split
        self.fields = dict(fields)
        store.fields(split)  # or says which splits there are
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
        """Fetch a batch: one gather from the memory map for each field.

        An index past the end is an example in a later epoch, as `ResumableOrder` counts them: see `places`.
        """
        _, places = self.places(indices)
        rows = places if self.kept is None else self.kept[places]
        return {
            name: torch.from_numpy(self.store.array(self.split, field)[rows]) for name, field in self.fields.items()
        }

    def places(self, indices: list[int]) -> tuple[Int64[np.ndarray, " batch"], Int64[np.ndarray, " batch"]]:
        """Return the epoch of each index, by which a domain changes examples at random, and the example's index."""
        return np.divmod(np.asarray(indices, np.int64), max(1, self.count))


class ResumableOrder(DistributedSampler[Batch]):
    """The order of one process's training examples, a function of seed and epoch alone, to be taken up in mid-epoch.

    Indices continue from epoch to epoch: index in the epoch + epoch × examples.

    Args:
        dataset: The examples of all processes.
        seed: Decides the order.
        epoch: The first epoch, in which a resumed run continues.
        done: Number of examples of that epoch that this process has processed already.
        options: Of `DistributedSampler`.
    """

    def __init__(self, dataset: Dataset[Batch], seed: int, epoch: int = 0, done: int = 0, **options: Any) -> None:
        super().__init__(dataset, shuffle=True, seed=seed, drop_last=True, **options)
        # Lightning sets the epoch only after workers have begun to fetch ahead.
        self.set_epoch(epoch)
        self._resumed_epoch = epoch
        self._done = done

    def __iter__(self) -> Iterator[Any]:
        first = self.epoch * len(self.dataset)  # type: ignore[arg-type]
        order: Iterator[Any] = islice(super().__iter__(), self._done if self.epoch == self._resumed_epoch else 0, None)
        return (first + index for index in order)


class BatchesInTurn(Sampler[list[int]]):
    """Batches of examples in order, shared among processes: process r of n takes every n-th, from r on.

    All processes get the same number of batches: where the last round has fewer than there are processes, those left
    over get an empty one.

    Args:
        examples: How many there are.
        batch_size: Examples in a batch; the last one may hold fewer.
        rank: Which process this is.
        processes: How many there are.
    """

    def __init__(self, examples: int, batch_size: int, rank: int, processes: int) -> None:
        self.starts = range(rank * batch_size, examples, processes * batch_size)
        self.rounds = -(-examples // (processes * batch_size))
        self.examples, self.batch_size = examples, batch_size

    def __len__(self) -> int:
        return self.rounds

    def __iter__(self) -> Iterator[list[int]]:
        for start, _ in zip_longest(self.starts, range(self.rounds)):
            yield [] if start is None else list(range(start, min(start + self.batch_size, self.examples)))


class StoreDataModule(lightning.LightningDataModule, ABC):
    """Batches for training, validation and testing.

    Training batches are reshuffled each epoch and are all of full size; validation and test batches hold every
    example once, in order. With several processes each trains on its own share of an epoch, and they take validation
    batches in turn, which needs ``use_distributed_sampler=False`` in the Trainer.

    Attributes:
        store: The open store.
    """

    def __init__(
        self,
        store: Path,
        domain: str,
        batch_size: int,
        eval_batch_size: int,
        workers: int = 0,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        """Open the store.

        Args:
            store: The file that ``prepare`` wrote.
            domain: The domain it must be of.
            batch_size: Examples in a training batch, on each device.
            eval_batch_size: Examples in a validation or test batch, on each device.
            workers: Processes that fetch batches ahead; a store in local memory or on a fast disk needs none.
            limit: Maximum number of examples of each split, chosen at random.
            seed: Decides the order of the examples, and which are used with a limit.

        Raises:
            UserError: The file is not a store of the domain, or a setting is out of range.
        """
        super().__init__()
        settings = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "limit": limit}
        for name, value in settings.items():
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: give a number from 1 up.")
        if workers < 0:
            raise UserError(f"workers is {workers}: give 0 or more.")
        self.store = Store(store, expect_domain=domain)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.workers = workers
        self.limit = limit
        self.seed = seed
        self._progress = {"epoch": 0, "batches": 0}

    @abstractmethod
    def dataset(self, split: str, training: bool = False) -> StoreDataset:
        """Return the examples of a split in order.

        Args:
            split: Which.
            training: Change them at random, where the domain does so in training.

        Raises:
            UserError: The store has no such split.
        """

    def loader(self, split: str) -> DataLoader[Batch]:
        """Return batches of ``eval_batch_size`` that hold every example of a split once, in order, unchanged.

        Raises:
            UserError: The store has no such split.
        """
        return self._loader(self.dataset(split), self.eval_batch_size)

    def initialization_batch(self) -> Batch:
        """Return some training examples, the same in any number of processes, for data-dependent initialisation."""
        return self._training_examples(INITIAL_EXAMPLES)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the shuffled training batches of this process.

        Raises:
            UserError: There are fewer examples than one batch takes.
        """
        processes = self.trainer.world_size if self.trainer else 1
        dataset = self.dataset("train", training=True)
        if len(dataset) < self.batch_size * processes:
            share = f" in each of {processes} processes" if processes > 1 else ""
            raise UserError(
                f"{self.store.path} gives {len(dataset):,} training examples, fewer than one batch of "
                f"{self.batch_size}{share}: lower batch_size."
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
        if "val" not in self.store.splits:
            return []
        if self.trainer is None or self.trainer.world_size == 1:
            return self.loader("val")
        dataset = self.dataset("val")
        turns = BatchesInTurn(len(dataset), self.eval_batch_size, self.trainer.global_rank, self.trainer.world_size)
        return self._loader(dataset, 1, batch_sampler=turns)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test batches.

        Raises:
            UserError: The store has no test examples.
        """
        return self.loader("test")

    def _training_examples(self, count: int) -> Batch:
        """At most ``count`` training examples, unchanged, chosen at random but always the same."""
        dataset = self.dataset("train")
        order = np.random.default_rng(self.seed).permutation(len(dataset))
        return dataset.__getitems__(order[:count].tolist())

    def _loader(self, dataset: StoreDataset, batch_size: int, **options: Any) -> DataLoader[Batch]:
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
    """Collate nothing: `StoreDataset.__getitems__` returns whole batches."""
    return batch
