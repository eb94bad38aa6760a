"""Tables of numbers from files: a row is an example, a column a variable.

Readable are ``.csv`` (``.tsv``, ``.txt``, also as ``.gz``; see `arflows.data.csv_tables`), ``.parquet``, ``.npy`` with
one array (rows, columns), and ``.npz`` or HDF5 (``.h5``, ``.hdf5``) with one such array for each split. Splits are
called train, val and test, or as in the data sets of Papamakarios et al. 2017 (arXiv:1705.07057): trn, tst, validation.
Numbers keep the precision of float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float64

from arflows.core.runtime.errors import UserError, did_you_mean
from arflows.data.arrays import read_hdf5, read_npy, read_npz
from arflows.data.csv_tables import CsvFormat, FileColumns, read_csv, read_parquet
from arflows.data.store import Store, is_store

WHOLE = "all"
"""The one split of a table that is not divided."""

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
"""Shares of the splits that `Table.divided` makes."""

_NAMES = {"train": ("train", "trn"), "val": ("val", "validation", "valid"), "test": ("test", "tst")}
_TEXT = (".csv", ".tsv", ".txt", ".dat")
_READABLE = "a .csv, .parquet or .npy file, or an .npz or HDF5 file with the arrays train, val and test"

Pick = Callable[[tuple[str, ...], bool], Sequence[int]]
"""Function of the names of a file's columns, and of whether the file itself names them, to the columns to keep."""


@dataclass(frozen=True)
class Table:
    """Rows of numbers, all finite, in one or several splits.

    Attributes:
        name: The file, or the name the user gave.
        columns: Names of the columns: those of the file, or x0, x1, …
        splits: The rows of each split; the one split of a table that is not divided is `WHOLE`.
        named: True if the file itself names its columns.
        remarks: Sentences about omissions and conversions.

    Raises:
        UserError: The arrays are not rows of finite numbers, or differ in their columns.
    """

    name: str
    columns: tuple[str, ...]
    splits: Mapping[str, Float64[np.ndarray, "rows columns"]]
    named: bool = False
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, splits: Mapping[str, np.ndarray], columns: Sequence[str] | None = None) -> Table:
        """Make a table of arrays, which are checked and brought to float64.

        Args:
            name: Name of the table in messages.
            splits: The rows of each split, (rows, columns).
            columns: Names of the columns; None for x0, x1, …
        """
        return _select(name, splits, columns, None)

    def find(self, names: Sequence[str]) -> list[int]:
        """Return the indices of columns.

        Raises:
            UserError: A column does not exist, or is named twice.
        """
        return find_columns(self.name, self.columns, names)

    def divided(self, seed: int) -> Table:
        """Return the table in the splits train, val and test: its own, or 80, 10 and 10 % of the shuffled rows.

        Raises:
            UserError: There are too few rows for three splits.
        """
        if WHOLE not in self.splits:
            return self
        rows = self.splits[WHOLE]
        ends = np.rint(np.cumsum(list(SHARES.values())) * len(rows)).astype(int)
        parts = np.split(np.random.default_rng(seed).permutation(len(rows)), ends[:-1])
        if not all(map(len, parts)):
            raise UserError(f"{self.name} has {len(rows)} rows, too few for three splits: give 10 or more.")
        return replace(self, splits={split: rows[np.sort(part)] for split, part in zip(SHARES, parts, strict=True)})


def default_names(count: int) -> list[str]:
    """Return names for columns without names: x0, x1 and so on."""
    return [f"x{index}" for index in range(count)]


def find_columns(file: str, columns: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the indices of columns.

    Args:
        file: The file in messages.
        columns: The names of its columns.
        names: The names to look for.

    Raises:
        UserError: A column does not exist, or is named twice.
    """
    for name in names:
        if name not in columns:
            shown = ", ".join(columns[:20]) + (", …" if len(columns) > 20 else "")
            raise UserError(f"{file} has no column {name!r}.{did_you_mean(name, columns)} It has {shown}.")
        if names.count(name) > 1:
            raise UserError(f"the column {name!r} of {file} is named twice: name it once.")
    return [columns.index(name) for name in names]


def read_table(path: Path, layout: CsvFormat = CsvFormat(), pick: Pick | None = None) -> Table:  # noqa: B008
    """Read a file.

    Args:
        path: The file.
        layout: Format of a CSV file, as far as it is known.
        pick: Choice of the columns to keep, in their order; None keeps all. Other columns need not hold numbers.

    Raises:
        UserError: The file is missing, damaged or of another kind, or its content is not a table of finite numbers.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}: give {_READABLE}.")
    if h5py.is_hdf5(path):
        return _split_arrays(path, _read_hdf5(path), pick)
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if kind in _TEXT:
        return _file_table(path, read_csv(path, layout), pick)
    if layout != CsvFormat():
        raise UserError(f"{path} is no CSV file: leave out --delimiter, --decimal and --header.")
    match path.suffix.lower():
        case ".parquet" | ".pq":
            return _file_table(path, read_parquet(path), pick)
        case ".npy":
            return _select(str(path), {WHOLE: read_npy(path)}, None, pick)
        case ".npz":
            return _split_arrays(path, read_npz(path), pick)
    raise UserError(f"{path} cannot be read as a table: give {_READABLE}.")


def _file_table(path: Path, found: FileColumns, pick: Pick | None) -> Table:
    names = found.names
    if names is not None and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two columns of {path} have the same name {twice!r}: rename one.")
    labels = tuple(names or default_names(len(found.columns)))
    kept = list(range(len(labels))) if pick is None else list(pick(labels, names is not None))
    for index in kept:
        if index in found.unusable:
            raise UserError(
                f"{path} holds no number in its column {labels[index]!r}, but {found.unusable[index]}: leave the "
                f"column out with --drop {labels[index]}, or correct it."
            )
    columns = [found.columns[index] for index in kept]
    rows = np.stack(columns, 1) if columns else np.empty((0, 0))
    _check_rows(str(path), rows, [labels[index] for index in kept], found.place)
    table = _select(str(path), {WHOLE: rows}, [labels[index] for index in kept], None)
    return replace(table, named=names is not None, remarks=tuple(found.remarks))


def _split_arrays(path: Path, arrays: Mapping[str, np.ndarray], pick: Pick | None) -> Table:
    splits = {split: arrays[name] for split, names in _NAMES.items() for name in names if name in arrays}
    if "train" not in splits:
        found = ", ".join(arrays) or "nothing"
        raise UserError(f"{path} has no array train (it has {found}): name its arrays train, val and test.")
    return _select(str(path), splits, None, pick)


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    if is_store(path):
        Store(path)  # raises an error if the file is damaged
        raise UserError(f"{path} is a store already: give the file it was prepared from, or use it as it is.")
    return read_hdf5(path)


def _select(name: str, splits: Mapping[str, np.ndarray], columns: Sequence[str] | None, pick: Pick | None) -> Table:
    """Check arrays, bring them to float64 and keep some of their columns."""
    where = {split: f"{split} in {name}" if split != WHOLE else name for split in splits}
    for split, array in splits.items():
        _check_array(where[split], array)
    widths = {split: array.shape[1] for split, array in splits.items()}
    if len(set(widths.values())) > 1:
        widths_by_split = ", ".join(f"{split} {width}" for split, width in widths.items())
        raise UserError(
            f"the splits in {name} differ in their number of columns ({widths_by_split}): give all the same."
        )
    labels = tuple(columns or default_names(next(iter(widths.values()))))
    kept = list(range(len(labels))) if pick is None else list(pick(labels, columns is not None))
    rows = {split: np.ascontiguousarray(array[:, kept], np.float64) for split, array in splits.items()}
    labels = tuple(labels[index] for index in kept)
    for split, array in rows.items():
        _check_rows(where[split], array, labels, lambda row: f"row {row + 1} (counted from 1)")
    return Table(name, labels, rows, named=columns is not None)


def _check_array(name: str, array: Any) -> None:
    if array.dtype.kind not in "fiub":
        raise UserError(f"{name} holds {array.dtype}, not numbers: give an array of floats.")
    if array.ndim != 2:
        shape = "×".join(map(str, array.shape)) or "a single number"
        raise UserError(f"{name} has the shape {shape}: give two axes, rows and columns.")
    if not array.size:
        raise UserError(f"{name} has {len(array)} rows of {array.shape[1]} columns: give at least one of both.")


def _check_rows(name: str, rows: np.ndarray, columns: Sequence[str], place: Callable[[int], str]) -> None:
    """Refuse numbers that float32 cannot hold."""
    bad = ~(np.abs(rows) <= np.finfo(np.float32).max)
    if not bad.any():
        return
    row, column = (int(index) for index in np.argwhere(bad)[0])
    missing = np.isnan(rows[:, column]).sum()
    raise UserError(
        f"{name} has missing (NaN), infinite or too large values in {bad.any(1).sum():,} of {len(rows):,} rows, the "
        f"first in {place(row)}, column {columns[column]!r} ({missing:,} missing there): leave these rows out, fill "
        f"them in, or drop the column with --drop {columns[column]}."
    )
