"""From a table of numbers to a store: ``arflows tabular prepare --source power.npz --out power.h5``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import refuse_existing
from arflows.core.runtime.option_types import PositiveInt
from arflows.data.csv_tables import CsvFormat
from arflows.data.densities import DENSITIES
from arflows.data.store_writer import write_store
from arflows.data.tables import WHOLE, Pick, Table, default_names, find_columns, read_table
from arflows.tabular.columns import LOOKED_AT, as_facts, offset_of, to_float32
from arflows.tabular.representation import TableSpec


def prepare(
    source: str,
    out: Path,
    context: list[str] | str | None = None,
    columns: list[str] | str | None = None,
    drop: list[str] | str | None = None,
    delimiter: str | None = None,
    decimal: Literal[".", ","] | None = None,
    header: bool | None = None,
    size: PositiveInt = 50_000,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Make a store of rows that `train`, `score` and `evaluate` read.

    An .npz or HDF5 file holds the arrays train, val and test (or trn, tst, validation), each (rows, columns); a .csv,
    .parquet or .npy file is shuffled and divided into 80, 10 and 10 %. Numbers keep their own units: a model
    standardises them itself, and its log-densities are those of the data as they are here. Columns that float32 would
    round too coarsely, such as times in seconds since 1970, are stored minus an offset, which the verbs add back.

    Args:
        source: A .csv, .parquet, .npy, .npz or HDF5 file, or a density of the plane: two_moons, rings, pinwheel,
            checkerboard, eight_gaussians, spirals.
        out: The store to write, such as power.h5.
        context: Columns that the density of the others is conditioned on, as year or '[year, price]'; columns without
            names are called x0, x1, …
        columns: Columns to take, beside those of the context; without it all of them.
        drop: Columns to leave out.
        delimiter: Character between the cells of a .csv file; found out if not given.
        decimal: Decimal sign of a .csv file; found out if not given.
        header: Whether the first line of a .csv file names the columns; found out if not given.
        size: Points to draw from a density of the plane; 80, 10 and 10 % of them are the splits.
        seed: Of points drawn and rows divided.
        overwrite: Replace the store if it exists already.
    """
    refuse_existing(out, overwrite)
    choice = _Choice(source, _listed(context), None if columns is None else _listed(columns), _listed(drop))
    table = _table(source, size, seed, CsvFormat(delimiter, decimal, header), choice.indices).divided(seed)
    conditions = table.find(choice.context)
    features = [index for index in range(len(table.columns)) if index not in conditions]
    if not features:
        raise UserError(f"{source} has no column left beside the context: name fewer columns in --context.")
    _check_features(table, features)
    kept = [*features, *conditions]
    names = [table.columns[index] for index in kept]
    offsets = tuple(offset_of(table.splits["train"][:, index]) for index in kept)
    rounded = {split: to_float32(source, rows[:, kept], names, offsets) for split, rows in table.splits.items()}
    width = len(features)
    fields = {"x": slice(width)} | ({"context": slice(width, None)} if conditions else {})
    spec = TableSpec(width, len(conditions))
    write_store(
        out,
        domain="tabular",
        spec=spec.as_dict(),
        splits={split: {name: rows[:, part] for name, part in fields.items()} for split, rows in rounded.items()},
        provenance={
            "source": source,
            "columns": {name: names[part] for name, part in fields.items()},
            **as_facts(offsets, width),
            "options": {"context": context, "columns": columns, "drop": drop, "seed": seed}
            | {"size": size if source in DENSITIES else None},
        },
    )
    conditioned = f", conditioned on {spec.context}" if spec.context else ""
    print(f"{out}: {spec.features} columns{conditioned}, from {source}")
    print(f"  columns: {', '.join(names[:width])}")
    if conditions:
        print(f"  context: {', '.join(names[width:])}")
    for remark in (*table.remarks, *_remarks(table, features, names, offsets)):
        print(f"  {remark}")
    for split, rows in rounded.items():
        print(f"  {split:<5} {len(rows):>9,} rows")


@dataclass(frozen=True)
class _Choice:
    """Columns that the user wants.

    Attributes:
        source: The table.
        context: Those conditioned on.
        columns: Those to take; None for all.
        drop: Those to leave out.
    """

    source: str
    context: list[str]
    columns: list[str] | None
    drop: list[str]

    def indices(self, names: Sequence[str], named: bool) -> list[int]:
        """Return the indices of the columns to take of a table with these names."""
        for group in (self.context, self.columns or [], self.drop):
            find_columns(self.source, names, group)  # raises an error for an unknown name
        if wanted := set(self.drop) & {*self.context, *(self.columns or [])}:
            raise UserError(f"column {min(wanted)!r} is in --drop and in --columns or --context: name it in one.")
        taken = [name for name in self.columns or names if name not in self.drop]
        taken += [name for name in self.context if name not in taken]
        return [list(names).index(name) for name in taken]


def _listed(names: list[str] | str | None) -> list[str]:
    if isinstance(names, str):
        return [name.strip() for name in names.split(",")]
    return names or []


def _table(source: str, size: int, seed: int, layout: CsvFormat, pick: Pick) -> Table:
    if source in DENSITIES:
        if size < 10:
            raise UserError(f"size is {size}: give 10 or more, for three splits.")
        points = DENSITIES[source].draw(size, np.random.default_rng(seed))
        kept = list(pick(tuple(default_names(points.shape[1])), False))
        names = [default_names(points.shape[1])[index] for index in kept]
        return Table.of(source, {WHOLE: points[:, kept]}, names)
    if not Path(source).exists():
        raise UserError(f"there is no source {source!r}: give the path of a table, or one of {', '.join(DENSITIES)}.")
    return read_table(Path(source), layout, pick)


def _check_features(table: Table, features: list[int]) -> None:
    """Refuse columns of one value, and columns that follow from another: neither has a density."""
    rows = table.splits["train"]
    constant = [index for index in features if rows[:, index].min() == rows[:, index].max()]
    if constant:
        names = ", ".join(table.columns[index] for index in constant)
        raise UserError(
            f"{table.name} has one value alone in all training rows of {names}: it has no density, so leave the column "
            f"out with --drop {names.replace(' ', '')}."
        )
    some = rows[:: -(-len(rows) // LOOKED_AT)][:, features]
    if len(features) < 2 or len(some) < 3:
        return
    repeated = np.argwhere(np.triu(np.abs(np.corrcoef(some, rowvar=False)) > 1 - 1e-12, 1))
    if len(repeated):
        one, other = (table.columns[features[index]] for index in repeated[0])
        raise UserError(
            f"column {other!r} of {table.name} repeats column {one!r}, up to scale and shift: the density of both has "
            f"no bound, so leave one out with --drop {other}."
        )


def _remarks(table: Table, features: list[int], names: list[str], offsets: tuple[float, ...]) -> Iterator[str]:
    """Yield a sentence for each column that is stored with an offset, or holds whole numbers only."""
    for name, offset in zip(names, offsets, strict=True):
        if offset:
            yield f"{name!r} is stored minus {offset:.12g}, so that float32 tells its values apart"
    for index in features:
        values = table.splits["train"][:, index]
        if (values == np.rint(values)).all():
            name = table.columns[index]
            yield (
                f"warning: {name!r} holds whole numbers only, so its density has no bound and log-likelihoods mean "
                f"little: condition on it with --context {name}, drop it with --drop {name}, or add noise from [0, 1)"
            )
