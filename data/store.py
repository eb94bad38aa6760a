"""Prepared examples in one HDF5 file, read at the speed of memory; `arflows.data.store_writer` writes it.

A store holds *splits* (``train``, ``val``, ``test``, …), each with *fields*; a field is one array whose leading axis
counts the examples. In the file a split is a group and a field is a dataset in it::

    /                  attributes: format, format_version, domain, spec, fingerprint, categories, provenance
    /train/images      uint8 (examples, channels, height, width)     attribute: sha256
    /train/labels      int64 (examples,)                             attribute: sha256

Examples that differ in length make a *ragged* field: their values one after the other, and where each begins::

    /train/waveforms           int16 (all samples,)                  attribute: sha256
    /train/waveforms.offsets   int64 (examples + 1,)                 attribute: sha256

``spec`` is the settings of the features (for images their size), ``categories`` says what the integers of a field
stand for, ``provenance`` where the examples came from and what was skipped; all three are JSON. Any HDF5 tool can read
a store.

Datasets are contiguous: neither chunked nor compressed. `Store` therefore needs HDF5 only to learn where in the file
each array lies and reads the arrays themselves through memory maps. That makes a random batch one gather, lets all
processes on a machine share one copy in the page cache, and leaves no open HDF5 handle for a forked worker to damage.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from arflows.core.runtime.errors import UserError
from arflows.data.arrays import check_heaps
from arflows.data.fingerprint import fingerprint

FORMAT = "arflows-store"
FORMAT_VERSION = 2
"""Version 2 has ragged fields; stores without them are written as version 1, which older versions of arflows read."""

OFFSETS = ".offsets"
"""Suffix of the name of the offsets of a ragged field."""

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Functions that convert the attributes of a format version to the next; none where nothing changes."""


@dataclass(frozen=True)
class FieldLayout:
    """Type, shape and position of one array in the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    sha256: str

    @property
    def nbytes(self) -> int:
        """Bytes the array takes."""
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Ragged:
    """A field of examples of different lengths, mapped from the file; slicing reads only the selected values.

    Attributes:
        values: (all lengths together, …): the examples one after the other.
        offsets: int64 (examples + 1,): where each begins, and where the last ends.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """Return one example, (length, …)."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no example {index} of {len(self)}")
        index %= len(self)
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Length of each example, int64 (examples,)."""
        return np.diff(self.offsets)


class Store:
    """A prepared data set, open for reading.

    The file is read once for its description and mapped into memory lazily, in each process for itself; a `Store` can
    be pickled, and handed to forked or spawned workers.

    Attributes:
        path: The file.
        domain: The domain that prepared it, such as ``vision``.
        spec: The settings of its features.
        fingerprint: The short hash of ``spec``.
        categories: For a field of integers, what each integer stands for.
        provenance: Source, counts, skipped files, date.
        splits: Number of examples of each split.
    """

    def __init__(self, path: str | Path, expect_domain: str | None = None) -> None:
        """Read the description of a store.

        Args:
            path: The file.
            expect_domain: Refuse a store of any other domain.

        Raises:
            UserError: If the file is missing, damaged, of a newer format, or of another domain.
        """
        self.path = Path(path)
        self._maps: dict[tuple[str, str], np.ndarray] = {}
        with _opened(self.path) as file:
            check_heaps(self.path, file)
            attributes = dict(file.attrs)
            if attributes.get("format") != FORMAT:
                raise UserError(f"{self.path} is an HDF5 file but not an arflows store: make one with `prepare`.")
            if (version := int(attributes["format_version"])) > FORMAT_VERSION:
                raise UserError(
                    f"{self.path} is a store of format version {version}, newer than the {FORMAT_VERSION} that this "
                    "arflows reads: update arflows, or prepare the data again with this one."
                )
            if version < 1:
                raise ValueError(f"there never was a format version {version}")
            for older in range(version, FORMAT_VERSION):
                attributes = MIGRATIONS.get(older, dict)(attributes)
            self.domain = _printable(str(attributes["domain"]))
            self.spec: dict[str, Any] = _printable(json.loads(attributes["spec"]))
            self.fingerprint = _printable(str(attributes["fingerprint"]))
            self.categories: dict[str, list[str]] = _printable(json.loads(attributes["categories"]))
            self.provenance: dict[str, Any] = _printable(json.loads(attributes["provenance"]))
            self._stamp = _stamp(self.path)
            self._fields = {
                split: dict(_layouts(group, self._stamp[0])) for split, group in _children(file, h5py.Group)
            }
            self.splits = {split: _count(split, fields) for split, fields in self._fields.items()}
        if expect_domain is not None and self.domain != expect_domain:
            raise UserError(
                f"{self.path} is a store of the domain {self.domain!r}, not {expect_domain!r}: give a store made by "
                f"`arflows {expect_domain} prepare`."
            )

    def __repr__(self) -> str:
        splits = ", ".join(f"{split}: {count:,}" for split, count in self.splits.items())
        return f"Store({str(self.path)!r}, domain={self.domain!r}, {splits})"

    def fields(self, split: str) -> dict[str, FieldLayout]:
        """Return the layout of each field of a split.

        Raises:
            UserError: The split does not exist; the sentence names the existing ones.
        """
        if split not in self._fields:
            raise UserError(f"{self.path} has no split {split!r}: it has {', '.join(self._fields)}.")
        return dict(self._fields[split])

    def array(self, split: str, name: str) -> np.ndarray:
        """Return one field as a read-only array mapped from the file; indexing reads only the selected values.

        Of a ragged field these are the values of all examples one after the other; see `ragged`.

        Raises:
            UserError: The split or field does not exist, or the file was replaced since the store was opened.
        """
        layout = self.fields(split).get(name)
        if layout is None:
            raise UserError(f"{self.path} has no field {name!r} in {split!r}: it has {', '.join(self._fields[split])}.")
        if (split, name) not in self._maps:
            if _stamp(self.path) != self._stamp:
                raise UserError(f"{self.path} was replaced while it was in use: start again.")
            mapped = np.memmap(self.path, layout.dtype, mode="r", offset=layout.offset, shape=layout.shape)
            self._maps[split, name] = mapped.view(np.ndarray)
        return self._maps[split, name]

    def ragged(self, split: str, name: str) -> Ragged:
        """Return a field of examples of different lengths.

        Raises:
            UserError: The split or field does not exist, or its offsets are damaged.
        """
        field = Ragged(self.array(split, name), self.array(split, name + OFFSETS))
        if field.offsets[0] != 0 or field.offsets[-1] != len(field.values) or (field.lengths < 0).any():
            raise UserError(f"{self.path} is damaged in {split}/{name}{OFFSETS}: prepare or copy it again.")
        return field

    def facts(self) -> dict[str, Any]:
        """Return a description of the data for a result: path, counts, fingerprints of settings and content."""
        return {
            "store": str(self.path),
            "domain": self.domain,
            "source": Path(str(self.provenance.get("source"))).name,  # results are published: no paths of one machine
            "available": self.provenance.get("available"),
            "fingerprint": self.fingerprint,
            "content": fingerprint(
                {
                    f"{split}/{name}": field.sha256
                    for split, fields in self._fields.items()
                    for name, field in fields.items()
                }
            ),
            "counts": self.splits,
        }

    def verify(self) -> None:
        """Read every byte and compare it with its checksum.

        Raises:
            UserError: Something differs; the sentence names each damaged dataset.
        """
        damaged = [] if fingerprint(self.spec) == self.fingerprint else ["spec"]
        for split, fields in self._fields.items():
            for name, layout in fields.items():
                if _sha256(self.array(split, name)) != layout.sha256:
                    damaged.append(f"{split}/{name}")
        if damaged:
            raise UserError(f"{self.path} is damaged in {', '.join(damaged)}: prepare or copy it again.")

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would carry the whole array; the process that receives the store maps the file itself.
        return self.__dict__ | {"_maps": {}}


def opened(source: Path | Store, domain: str) -> Store | None:
    """Return the store of a domain that is given open or by its path; None if the path is not a store.

    Args:
        source: The store, or a path.
        domain: The domain that it must be of.

    Raises:
        UserError: If the store is damaged, or of another domain.
    """
    if isinstance(source, Store):
        return source
    return Store(source, expect_domain=domain) if is_store(source) else None


def is_store(path: Path) -> bool:
    """Return True if a file is a store, or a damaged HDF5 file, whose damage `Store` names.

    False for anything else: a folder, a file of another kind, an HDF5 file of other arrays.
    """
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    try:
        with h5py.File(path, "r", locking=False) as file:
            check_heaps(path, file)
            return bool(np.array_equal(file.attrs.get("format"), FORMAT))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return True


def verify(path: Path) -> str | None:
    """Read every byte of a store and compare it with its checksum.

    Returns:
        Description of the verified data; None if the path is neither an HDF5 file nor named like one.

    Raises:
        UserError: Something differs; the sentence names each damaged dataset.
    """
    if not path.is_file() or not (h5py.is_hdf5(path) or path.suffix in (".h5", ".hdf5")):
        return None
    store = Store(path)
    store.verify()
    return (
        f"{path}: a store of {store.domain}, {', '.join(f'{name} {count:,}' for name, count in store.splits.items())}"
    )


def _printable(value: Any) -> Any:
    """Return a value after checking that its text can be encoded, which fails for a damaged file.

    Raises:
        UnicodeEncodeError: There is other text in it.
    """
    json.dumps(value, ensure_ascii=False).encode()
    return value


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file; each way to fail has its own error message."""
    if not path.exists():
        raise UserError(f"there is no store at {path}: check the path, or make one with `prepare`.")
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a store: make a store of it with `prepare`.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: prepare or copy it again.")
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: permission denied.") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, ArithmeticError) as error:
        if not h5py.is_hdf5(path):
            raise UserError(f"{path} is not an HDF5 file: give a store made by `prepare`.") from error
        state = "is truncated" if "truncated" in str(error) else "is damaged and cannot be read"
        raise UserError(f"{path} {state}: prepare or copy it again.") from error


def _children(group: h5py.Group, kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the members of a group, refusing links: a store never makes one, and they can lead to other files."""
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink) or not isinstance(group[name], kind):
            raise ValueError(f"{group.name}/{name} is not a {kind.__name__}")
        yield _printable(name), group[name]


def _layouts(group: h5py.Group, file_size: int) -> Iterator[tuple[str, FieldLayout]]:
    for name, dataset in _children(group, h5py.Dataset):
        offset = dataset.id.get_offset()
        if offset is None or dataset.external or dataset.dtype.hasobject or not dataset.shape:
            raise ValueError(f"{dataset.name} is not a contiguous array of numbers")
        layout = FieldLayout(dataset.dtype, dataset.shape, offset, str(dataset.attrs["sha256"]))
        if offset + layout.nbytes > file_size:
            raise ValueError(f"{dataset.name} is truncated")
        yield name, layout


def _count(split: str, fields: Mapping[str, FieldLayout]) -> int:
    counts = {
        layout.shape[0] - name.endswith(OFFSETS) for name, layout in fields.items() if name + OFFSETS not in fields
    }
    if len(counts) != 1:
        raise ValueError(f"the fields of {split} differ in their number of examples")
    return counts.pop()


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.data).hexdigest()  # pages are read in and dropped as they are hashed
