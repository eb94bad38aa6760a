"""Rows that the verbs read for a trained model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from arflows.core.flows import VectorFlow
from arflows.core.likelihood import Batch
from arflows.core.runtime.errors import UserError
from arflows.data.store import Store, opened
from arflows.data.tables import WHOLE, default_names, find_columns, read_table
from arflows.tabular.columns import Columns, to_float32
from arflows.tabular.representation import TableSpec


@dataclass(frozen=True)
class Rows:
    """Rows for a model, with their context."""

    x: Float[Tensor, "rows features"]
    context: Float[Tensor, "rows context"] | None

    @classmethod
    def read(cls, source: Path | Store, split: str, flow: VectorFlow, columns: Columns) -> Self:
        """Reads the rows of a split of a store, or of a table.

        The columns of a table are found by name if it has names, else by their order. A table without splits is
        read whole.

        Args:
            source: The path of the file, or an open store.
            split: Which part of a store, or of a table in splits.
            flow: The model that the rows must fit.
            columns: Names of its columns.

        Raises:
            UserError: The rows do not fit, or the file is damaged or no table of numbers.
        """
        store = opened(source, "tabular")
        source = source.path if isinstance(source, Store) else source
        if store is not None:
            spec = TableSpec.from_dict(store.spec)
            given = TableSpec(spec.features, spec.context if flow.context_features else 0)
            if differences := TableSpec(flow.dims, flow.context_features).differences(given):
                raise UserError(f"{source} does not fit the model, model ≠ store: {', '.join(differences)}.")
            store.fields(split)  # raises an error that names the splits
            parts = {"x": flow.dims} | ({"context": flow.context_features} if flow.context_features else {})
            stored = store.provenance.get("offsets", {})
            shifts = [value for name, width in parts.items() for value in stored.get(name, [0.0] * width)]
            values = np.concatenate([store.array(split, name) for name in parts], 1)
            if shifts != list(columns.offsets):
                values = to_float32(str(source), values + np.array(shifts, np.float64), columns.names, columns.offsets)
        else:
            table = read_table(source, pick=lambda found, named: _places(source, found, named, columns.names))
            split = WHOLE if WHOLE in table.splits else split
            if split not in table.splits:
                raise UserError(f"{source} has no split {split!r}: it has {', '.join(table.splits)}.")
            values = to_float32(str(source), table.splits[split], columns.names, columns.offsets)
        x, context = torch.from_numpy(values).split([flow.dims, flow.context_features], 1)
        return cls(x, context if flow.context_features else None)

    def __len__(self) -> int:
        return len(self.x)

    def first(self, count: int) -> Self:
        """The first of the rows."""
        return type(self)(self.x[:count], None if self.context is None else self.context[:count])

    def batches(self, size: int, progress: str | None = None) -> Iterator[Batch]:
        """Yields the rows in order.

        Args:
            size: Rows in a batch.
            progress: Title of the progress bar; None for no bar.
        """
        with tqdm(total=len(self), desc=progress, unit=" rows", disable=None if progress else True) as bar:
            for start in range(0, len(self), size):
                batch = {"x": self.x[start : start + size]}
                yield batch if self.context is None else {**batch, "context": self.context[start : start + size]}
                bar.update(len(batch["x"]))


def _places(source: Path, found: Sequence[str], named: bool, names: Sequence[str]) -> list[int]:
    """Return the indices of a model's columns in a table.

    Args:
        source: The table.
        found: Names of its columns.
        named: True if the table itself names them.
        names: Names of the model's columns.
    """
    numbered = default_names(len(found))
    if named and set(names) <= set(found):
        return find_columns(str(source), found, names)
    if set(names) == set(numbered):  # the columns of the model have no names, only positions
        return [numbered.index(name) for name in names]
    if named:
        return find_columns(str(source), found, names)  # raises an error that names the missing one
    if len(names) == len(numbered):
        return list(range(len(names)))
    raise UserError(
        f"{source} has {len(numbered)} columns, the model takes {len(names)} ({', '.join(names)}): give these alone, "
        "in this order, or a .csv file that names its columns."
    )
