"""Tables of numbers from files: a row is an example, a column a variable.

What is read: ``.csv`` (or ``.csv.gz``) with or without a line of names, ``.npy`` with one array (rows, columns), and
``.npz`` or HDF5 (``.h5``, ``.hdf5``) with one such array for each split. Splits are called train, val and test, or as
the data sets of Papamakarios et al. 2017 (arXiv:1705.07057) are passed on: trn, tst, validation.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float32

from arflows.core.runtime.errors import UserError, did_you_mean
from arflows.data.archives import open_text
from arflows.data.arrays import read_hdf5, read_npy, read_npz
from arflows.data.store import Store, is_store

WHOLE = "all"
"""The one split of a table that is not divided."""

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
"""How `Table.divided` divides."""

_NAMES = {"train": ("train", "trn"), "val": ("val", "validation", "valid"), "test": ("test", "tst")}
_READABLE = "a .csv or .npy file, or an .npz or HDF5 file with the arrays train, val and test"


@dataclass(frozen=True)
class Table:
    """Rows of numbers, all finite, in one or several splits.

    Attributes:
        name: The file, or what else the user called it.
        columns: Names of the columns: those of the file, or x0, x1, …
        splits: The rows of each split; the one split of a table that is not divided is `WHOLE`.
        named: Whether the file itself names its columns.

    Raises:
        UserError: The arrays are no such rows, or differ in their columns.
    """

    name: str
    columns: tuple[str, ...]
    splits: Mapping[str, Float32[np.ndarray, "rows columns"]]
    named: bool = False

    @classmethod
    def of(cls, name: str, splits: Mapping[str, np.ndarray], columns: Sequence[str] | None = None) -> Table:
        """Make a table of arrays, which are checked and brought to float32."""
        rows = {split: _rows(f"{split} in {name}" if split != WHOLE else name, a) for split, a in splits.items()}
        widths = {split: array.shape[1] for split, array in rows.items()}
        if len(set(widths.values())) > 1:
            told = ", ".join(f"{split} {width}" for split, width in widths.items())
            raise UserError(f"the splits in {name} differ in their number of columns ({told}): give all the same.")
        return cls(name, tuple(columns or default_names(next(iter(widths.values())))), rows, named=columns is not None)

    def find(self, names: Sequence[str]) -> list[int]:
        """Return the places of columns.

        Raises:
            UserError: There is no such column, or one is named twice.
        """
        for name in names:
            if name not in self.columns:
                shown = ", ".join(self.columns[:20]) + (", …" if len(self.columns) > 20 else "")
                raise UserError(
                    f"{self.name} has no column {name!r}.{did_you_mean(name, self.columns)} It has {shown}."
                )
            if names.count(name) > 1:
                raise UserError(f"the column {name!r} of {self.name} is named twice: name it once.")
        return [self.columns.index(name) for name in names]

    def divided(self, seed: int) -> Table:
        """Return the table with the splits train, val and test: as they are, or 80, 10 and 10 % of shuffled rows.

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
    """What columns without names are called: x0, x1 and so on."""
    return [f"x{index}" for index in range(count)]


def read_table(path: Path) -> Table:
    """Read a file.

    Raises:
        UserError: The file is missing, damaged or of another kind, or its content is no table of finite numbers.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}: give {_READABLE}.")
    if h5py.is_hdf5(path):
        return _split_arrays(path, _read_hdf5(path))
    match path.suffix:
        case ".csv":
            return _read_csv(path)
        case ".gz" if path.stem.endswith(".csv"):
            return _read_csv(path)
        case ".npy":
            return Table.of(str(path), {WHOLE: read_npy(path)})
        case ".npz":
            return _split_arrays(path, read_npz(path))
    raise UserError(f"{path} cannot be read as a table: give {_READABLE}.")


def _split_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> Table:
    splits = {split: arrays[name] for split, names in _NAMES.items() for name in names if name in arrays}
    if "train" not in splits:
        found = ", ".join(arrays) or "nothing"
        raise UserError(f"{path} has no array train (it has {found}): name its arrays train, val and test.")
    return Table.of(str(path), splits)


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    if is_store(path):
        Store(path)  # raises an error if the file is damaged
        raise UserError(f"{path} is a store already: give the file it was prepared from, or use it as it is.")
    return read_hdf5(path)


def _read_csv(path: Path) -> Table:
    try:
        with open_text(path) as file:
            first = next(csv.reader(file), [])
        named = not all(map(_is_number, first))
        if named and len(set(first)) < len(first):
            raise UserError(f"two columns of {path} have the same name: rename one.")
        # It warns of a file without numbers, which is refused below.
        with warnings.catch_warnings(action="ignore"), open_text(path) as file:
            values = np.loadtxt(file, np.float64, delimiter=",", skiprows=int(named), ndmin=2, comments=None)
    except (ValueError, csv.Error) as error:  # an encoding that is none is a ValueError too
        raise UserError(
            f"{path} is no table of numbers ({str(error).rstrip('.')}): give comma-separated numbers, as many in each "
            "line, below a line of names if you like."
        ) from error
    return Table.of(str(path), {WHOLE: values}, [name.strip() for name in first] if named else None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _rows(name: str, array: Any) -> Float32[np.ndarray, "rows columns"]:
    """Check one array and bring it to float32."""
    if array.dtype.kind not in "fiub":
        raise UserError(f"{name} holds {array.dtype}, not numbers: give an array of floats.")
    if array.ndim != 2:
        shape = "×".join(map(str, array.shape)) or "a single number"
        raise UserError(f"{name} has the shape {shape}: give two axes, rows and columns.")
    if not array.size:
        raise UserError(f"{name} has {len(array)} rows of {array.shape[1]} columns: give at least one of both.")
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(array, np.float32)
    bad = ~np.isfinite(rows)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise UserError(
            f"{name} holds NaN, infinite or too large values in {bad.any(1).sum():,} of {len(rows):,} rows, the first "
            f"in row {row}, column {column} (counted from 0): leave these rows out, or fill them in."
        )
    return rows
