"""Prepared examples in one HDF5 file: written whole or not at all, read at the speed of memory.

A store holds *splits* (``train``, ``val``, ``test``, …), each with *fields*; a field is one array whose leading axis
counts the examples. In the file a split is a group and a field is a dataset in it::

    /                  attributes: format, format_version, domain, spec, fingerprint, categories, provenance
    /train/images      uint8 (examples, channels, height, width)     attribute: sha256
    /train/labels      int64 (examples,)                             attribute: sha256

``spec`` is the settings of the features (for images their size), ``categories`` says what the integers of a field
stand for, ``provenance`` where the examples came from and what was skipped; all three are JSON. Any HDF5 tool can read
a store.

Datasets are contiguous: neither chunked nor compressed. `Store` therefore needs HDF5 only to learn where in the file
each array lies and reads the arrays themselves through memory maps. That makes a random batch one gather, lets all
processes on a machine share one copy in the page cache, and leaves no open HDF5 handle for a forked worker to damage.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import h5py
import numpy as np

from arflows.data.errors import DataError
from arflows.data.fingerprint import canonical_json, fingerprint

FORMAT = "arflows-store"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class FieldLayout:
    """Where one array lies in the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    sha256: str

    @property
    def nbytes(self) -> int:
        """Bytes the array takes."""
        return self.dtype.itemsize * math.prod(self.shape)


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
            DataError: The path leads to no store, to a damaged one, to one of a newer format or of another domain.
        """
        self.path = Path(path)
        self._maps: dict[tuple[str, str], np.ndarray] = {}
        with _opened(self.path) as file:
            attributes = file.attrs
            if attributes.get("format") != FORMAT:
                raise DataError(f"{self.path} is an HDF5 file but not an arflows store: make one with `prepare`.")
            if (version := int(attributes["format_version"])) > FORMAT_VERSION:
                raise DataError(
                    f"{self.path} is a store of format version {version}, newer than the {FORMAT_VERSION} that this "
                    "arflows reads: update arflows, or prepare the data again with this one."
                )
            self.domain = str(attributes["domain"])
            self.spec: dict[str, Any] = json.loads(attributes["spec"])
            self.fingerprint = str(attributes["fingerprint"])
            self.categories: dict[str, list[str]] = json.loads(attributes["categories"])
            self.provenance: dict[str, Any] = json.loads(attributes["provenance"])
            self._stamp = _stamp(self.path)
            self._fields = {
                split: dict(_layouts(group, self._stamp[0])) for split, group in _children(file, h5py.Group)
            }
            self.splits = {split: _count(split, fields) for split, fields in self._fields.items()}
        if expect_domain is not None and self.domain != expect_domain:
            raise DataError(
                f"{self.path} is a store of the domain {self.domain!r}, not {expect_domain!r}: give a store made by "
                f"`arflows {expect_domain} prepare`."
            )

    def __repr__(self) -> str:
        splits = ", ".join(f"{split}: {count:,}" for split, count in self.splits.items())
        return f"Store({str(self.path)!r}, domain={self.domain!r}, {splits})"

    def fields(self, split: str) -> dict[str, FieldLayout]:
        """Return the layout of each field of a split.

        Raises:
            DataError: There is no such split; the sentence names those there are.
        """
        if split not in self._fields:
            raise DataError(f"{self.path} has no split {split!r}: it has {', '.join(self._fields)}.")
        return dict(self._fields[split])

    def array(self, split: str, name: str) -> np.ndarray:
        """Return one field as a read-only array mapped from the file; indexing reads just what it touches.

        Raises:
            DataError: There is no such split or field, or the file was replaced since the store was opened.
        """
        layout = self.fields(split).get(name)
        if layout is None:
            raise DataError(f"{self.path} has no field {name!r} in {split!r}: it has {', '.join(self._fields[split])}.")
        if (split, name) not in self._maps:
            if _stamp(self.path) != self._stamp:
                raise DataError(f"{self.path} was replaced while it was in use: start again.")
            mapped = np.memmap(self.path, layout.dtype, mode="r", offset=layout.offset, shape=layout.shape)
            self._maps[split, name] = mapped.view(np.ndarray)
        return self._maps[split, name]

    def facts(self) -> dict[str, Any]:
        """Which data a result was obtained on: the store, its counts, and the fingerprint of its settings."""
        return {
            "store": str(self.path),
            "source": Path(str(self.provenance.get("source"))).name,  # where it lay on one machine is nobody's business
            "available": self.provenance.get("available"),
            "fingerprint": self.fingerprint,
            "counts": self.splits,
        }

    def verify(self) -> None:
        """Read every byte and compare it with its checksum.

        Raises:
            DataError: Something differs; the sentence names each damaged dataset.
        """
        damaged = [] if fingerprint(self.spec) == self.fingerprint else ["spec"]
        for split, fields in self._fields.items():
            for name, layout in fields.items():
                if _sha256(self.array(split, name)) != layout.sha256:
                    damaged.append(f"{split}/{name}")
        if damaged:
            raise DataError(f"{self.path} is damaged in {', '.join(damaged)}: prepare or copy it again.")

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would carry the whole array; the process that receives the store maps it anew.
        return self.__dict__ | {"_maps": {}}


@dataclass
class _Spool:
    """One field on its way into a store: its bytes in a scratch file, its checksum so far."""

    file: BinaryIO
    dtype: np.dtype[Any]
    shape: tuple[int, ...]  # of one example
    count: int = 0
    hash: Any = field(default_factory=hashlib.sha256)


class StoreWriter:
    """Write a store batch by batch: ``with StoreWriter(path, …) as writer: writer.append("train", {"images": …})``.

    Batches are spooled to a hidden scratch folder beside ``path`` and assembled there when the block ends; the finished
    file then takes its place in one step. When the block raises, is interrupted or the disk is full, the scratch folder
    is removed and a store that was at ``path`` before stays as it was (only a process that is killed outright leaves
    the folder behind). Memory holds one batch; the disk must have room
    for the data twice.

    Attributes:
        provenance: A dictionary to add to until the block ends.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        domain: str,
        spec: Mapping[str, Any],
        categories: Mapping[str, Sequence[str]] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Describe the store; nothing is written before the block is entered.

        Args:
            path: Where it will lie; missing folders are made, an older store is replaced.
            domain: The domain it belongs to.
            spec: The settings of its features.
            categories: For a field of integers, what each integer stands for.
            provenance: Where the examples came from; the arflows version and the date are added.
        """
        self.path = Path(path)
        self.domain = domain
        self.spec = dict(spec)
        self.categories = {name: list(values) for name, values in (categories or {}).items()}
        self.provenance: dict[str, Any] = {
            "arflows": importlib.metadata.version("arflows"),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **(provenance or {}),
        }
        self._splits: dict[str, dict[str, _Spool]] = {}
        self._scratch: Path | None = None

    def __enter__(self) -> Self:
        if self.path.is_dir():
            raise DataError(f"cannot write a store to {self.path}: it is a folder, give a file name such as data.h5.")
        if self.path.exists() and self.path.stat().st_size and not h5py.is_hdf5(self.path):
            raise DataError(f"cannot write a store to {self.path}: a file that is not a store lies there.")
        with self._disk_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._scratch = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        return self

    def append(self, split: str, fields: Mapping[str, np.ndarray]) -> None:
        """Add examples to a split.

        Args:
            split: Its name; new names make new splits.
            fields: For each field an array (examples, …). Every batch of a split brings the same fields, of the same
                dtype and the same shape after the leading axis.

        Raises:
            ValueError: The arrays do not fit each other or the batches before.
            DataError: They cannot be written, for example because the disk is full.
        """
        arrays = {name: _plain(name, array) for name, array in fields.items()}
        if len({len(array) for array in arrays.values()}) != 1:
            raise ValueError(f"fields differ in their number of examples: { {n: len(a) for n, a in arrays.items()} }")
        if split not in self._splits:
            self._splits[split] = {name: self._spool(split, name, array) for name, array in arrays.items()}
        spools = self._splits[split]
        layout = {name: (array.dtype, array.shape[1:]) for name, array in arrays.items()}
        if layout != (expected := {name: (spool.dtype, spool.shape) for name, spool in spools.items()}):
            raise ValueError(f"a batch of {layout} cannot follow batches of {expected} in {split!r}")
        with self._disk_errors():
            for name, array in arrays.items():
                spool = spools[name]
                spool.file.write(array.data)
                spool.hash.update(array.data)
                spool.count += len(array)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                with self._disk_errors():
                    self._commit()
        finally:
            for spool in self._all_spools():
                with suppress(OSError):  # a full disk: what is left in the buffer has no place to go
                    spool.file.close()
            if self._scratch is not None:
                shutil.rmtree(self._scratch, ignore_errors=True)

    def _commit(self) -> None:
        assert self._scratch is not None
        if not self._splits or not all(spool.count for spool in self._all_spools()):
            raise DataError(f"{self.path} was not written: there are no examples for it.")
        for spool in self._all_spools():
            spool.file.close()
        finished = self._scratch / "store.h5"
        # The 1.10 file format carries checksums of its metadata and allows attributes past 64 KiB (long provenance).
        options = {"libver": ("v110", "v110"), "track_order": True, "alignment_threshold": 1, "alignment_interval": 64}
        with h5py.File(finished, "w", **options) as file:
            file.attrs["format"] = FORMAT
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["domain"] = self.domain
            file.attrs["spec"] = canonical_json(self.spec)
            file.attrs["fingerprint"] = fingerprint(self.spec)
            file.attrs["categories"] = json.dumps(self.categories)
            file.attrs["provenance"] = json.dumps(self.provenance)
            for split, spools in self._splits.items():
                for name, spool in spools.items():
                    data = np.memmap(spool.file.name, spool.dtype, mode="r", shape=(spool.count, *spool.shape))
                    dataset = file.create_dataset(f"{split}/{name}", data=data)
                    dataset.attrs["sha256"] = spool.hash.hexdigest()
        _sync(finished)
        os.replace(finished, self.path)
        _sync(self.path.parent)

    def _spool(self, split: str, name: str, array: np.ndarray) -> _Spool:
        if self._scratch is None:
            raise ValueError("a StoreWriter is appended to inside its `with` block")
        if any(not part or "/" in part or part.startswith(".") for part in (split, name)):
            raise ValueError(f"not a name for a split or field: {split!r}, {name!r}")
        with self._disk_errors():
            return _Spool((self._scratch / f"{split}.{name}").open("wb"), array.dtype, array.shape[1:])

    def _all_spools(self) -> Iterator[_Spool]:
        return (spool for spools in self._splits.values() for spool in spools.values())

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # HDF5 raises RuntimeError where a file cannot be closed
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            raise DataError(
                f"cannot write the store {self.path} ({reason}): make room or choose another place."
            ) from error


def write_store(
    path: str | Path,
    *,
    domain: str,
    spec: Mapping[str, Any],
    splits: Mapping[str, Mapping[str, np.ndarray]],
    categories: Mapping[str, Sequence[str]] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write arrays that are in memory as a store; see `StoreWriter` for the arguments and what may go wrong.

    Args:
        path: Where it will lie.
        domain: The domain it belongs to.
        spec: The settings of its features.
        splits: For each split its fields, each an array (examples, …).
        categories: For a field of integers, what each integer stands for.
        provenance: Where the examples came from.
    """
    with StoreWriter(path, domain=domain, spec=spec, categories=categories, provenance=provenance) as writer:
        for split, fields in splits.items():
            writer.append(split, fields)


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    """Return a field in the form it has in the file: C order, little-endian; refuse what has no fixed size."""
    array = np.asarray(array)
    if array.ndim == 0 or array.dtype.kind not in "biufc":
        raise ValueError(f"field {name!r} must be an array of numbers with a leading axis of examples")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file, with one sentence for each way it can fail to be one."""
    if not path.exists():
        raise DataError(f"there is no store at {path}: check the path, or make one with `prepare`.")
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a store: make a store of it with `prepare`.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty: prepare or copy it again.")
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except PermissionError as error:
        raise DataError(f"{path} cannot be read: permission denied.") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        if not h5py.is_hdf5(path):
            raise DataError(f"{path} is not an HDF5 file: give a store made by `prepare`.") from error
        state = "is truncated" if "truncated" in str(error) else "is damaged and cannot be read"
        raise DataError(f"{path} {state}: prepare or copy it again.") from error


def _children(group: h5py.Group, kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the members of a group, refusing links: a store never makes one, and they can lead to other files."""
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink) or not isinstance(group[name], kind):
            raise ValueError(f"{group.name}/{name} is not a {kind.__name__}")
        yield name, group[name]


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
    counts = {layout.shape[0] for layout in fields.values()}
    if len(counts) != 1:
        raise ValueError(f"the fields of {split} differ in their number of examples")
    return counts.pop()


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.data).hexdigest()  # pages are read in and dropped as they are hashed


def _sync(path: Path) -> None:
    """Make sure that a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
