"""Batches of rows from a prepared store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arflows.data.batches import Batch, StoreDataModule, StoreDataset
from arflows.tabular.representation import TableSpec

INITIAL_ROWS = 32_768
"""Training rows, at most, from which a model takes means and standard deviations."""


class TableDataModule(StoreDataModule):
    """Batches of rows for training, validation and testing; see `StoreDataModule`.

    A batch is ``{"x": float32 (batch, features), "context": float32 (batch, context)}``; the context is there if the
    store has some and ``conditional`` is set.

    Attributes:
        spec: The widths of its rows.
        conditional: True if batches contain the context.
    """

    def __init__(
        self,
        store: Path,
        batch_size: int = 256,
        eval_batch_size: int = 4096,
        **options: Any,
    ) -> None:
        """Open the store.

        Args:
            store: The file that `arflows tabular prepare` wrote.
            batch_size: Rows in a training batch, on each device.
            eval_batch_size: Rows in a validation or test batch, on each device.
            **options: Options of `StoreDataModule`: workers, limit and seed.

        Raises:
            UserError: The file is no store of rows or of another version, or a setting is out of range.
        """
        super().__init__(store, "tabular", batch_size, eval_batch_size, **options)
        self.spec = TableSpec.from_dict(self.store.spec)
        self.conditional = self.spec.context > 0

    def dataset(self, split: str, training: bool = False) -> StoreDataset:
        """Return the rows of a split in order."""
        fields = {"x": "x"} | ({"context": "context"} if self.conditional else {})
        return StoreDataset(self.store, split, fields, self.limit, self.seed)

    def initialization_batch(self) -> Batch:
        """Return training rows, the same in every process and run, by which a model standardises."""
        return self._training_examples(INITIAL_ROWS)
