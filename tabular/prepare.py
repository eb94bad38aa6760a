"""From a table of numbers to a store: ``arflows tabular prepare --source power.npz --out power.h5``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.option_types import PositiveInt
from arflows.data.densities import DENSITIES
from arflows.data.store_writer import write_store
from arflows.data.tables import WHOLE, Table, read_table
from arflows.tabular.representation import TableSpec


def prepare(
    source: str,
    out: Path,
    context: list[str] | str | None = None,
    size: PositiveInt = 50_000,
    seed: int = 0,
) -> None:
    """Make a store of rows that `train`, `score` and `evaluate` read.

    An .npz or HDF5 file holds the arrays train, val and test (or trn, tst, validation), each (rows, columns); a .csv or
    .npy file is shuffled and divided into 80, 10 and 10 %. Numbers are kept in their own units: a model standardises
    them itself, and its log-densities are those of the data as they are here.

    Args:
        source: A .csv, .npy, .npz or HDF5 file, or a density of the plane: two_moons, rings, pinwheel, checkerboard,
            eight_gaussians, spirals.
        out: The store to write, such as power.h5.
        context: Columns that the density of the others is conditioned on, as year or '[year, price]'; columns without
            names are called x0, x1, …
        size: Points to draw from a density of the plane; 80, 10 and 10 % of them are the splits.
        seed: Of points drawn and rows divided.
    """
    table = _table(source, size, seed).divided(seed)
    conditions = table.find([context] if isinstance(context, str) else context or [])
    features = [index for index in range(len(table.columns)) if index not in conditions]
    if not features:
        raise UserError(f"{source} has no column left beside the context: name fewer columns in --context.")
    _refuse_constant(table, features)
    fields = {"x": features} | ({"context": conditions} if conditions else {})
    spec = TableSpec(len(features), len(conditions))
    write_store(
        out,
        domain="tabular",
        spec=spec.as_dict(),
        splits={split: {name: rows[:, c] for name, c in fields.items()} for split, rows in table.splits.items()},
        provenance={
            "source": source,
            "columns": {name: [table.columns[index] for index in c] for name, c in fields.items()},
            "options": {"context": context, "size": size if source in DENSITIES else None, "seed": seed},
        },
    )
    conditioned = f", conditioned on {spec.context}" if spec.context else ""
    print(f"{out}: {spec.features} columns{conditioned}, from {source}")
    for split, rows in table.splits.items():
        print(f"  {split:<5} {len(rows):>9,} rows")


def _table(source: str, size: int, seed: int) -> Table:
    if source in DENSITIES:
        if size < 10:
            raise UserError(f"size is {size}: give 10 or more, for three splits.")
        points = DENSITIES[source].draw(size, np.random.default_rng(seed))
        return Table.of(source, {WHOLE: points})
    if not Path(source).exists():
        raise UserError(f"there is no source {source!r}: give the path of a table, or one of {', '.join(DENSITIES)}.")
    return read_table(Path(source))


def _refuse_constant(table: Table, features: list[int]) -> None:
    rows = table.splits["train"]
    constant = [index for index in features if rows[:, index].min() == rows[:, index].max()]
    if constant:
        names = ", ".join(table.columns[index] for index in constant)
        raise UserError(
            f"{table.name} has one value alone, to the precision of float32, in all training rows of {names}: it has "
            "no density, so leave the column out."
        )
