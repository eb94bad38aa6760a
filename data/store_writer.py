"""Writing stores (see `arflows.data.store`): whole or not at all, a batch at a time."""

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

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import sync
from arflows.data.fingerprint import canonical_json, fingerprint
from arflows.data.store import FORMAT, OFFSETS

ROOM = 1 << 14
"""Bytes that HDF5 may need to describe a file, and again for each field."""


@dataclass
class _Spool:
    """Field that is being written: its bytes in a scratch file, and its checksum so far."""

    file: BinaryIO
    dtype: np.dtype[Any]
    shape: tuple[int, ...]  # of one example
    count: int = 0
    hash: Any = field(default_factory=hashlib.sha256)

    @property
    def nbytes(self) -> int:
        return self.count * math.prod(self.shape) * self.dtype.itemsize


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
            raise UserError(f"cannot write a store to {self.path}: it is a folder, give a file name such as data.h5.")
        if self.path.exists() and self.path.stat().st_size and not h5py.is_hdf5(self.path):
            raise UserError(f"cannot write a store to {self.path}: a file that is not a store lies there.")
        with self._disk_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._scratch = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        return self

    def append(self, split: str, fields: Mapping[str, np.ndarray | Sequence[np.ndarray]]) -> None:
        """Add examples to a split.

        Args:
            split: Its name; new names make new splits.
            fields: For each field an array (examples, …), or for a ragged one a list of arrays (length, …), one an
                example. Every batch of a split brings the same fields, of the same dtype and the same shape after the
                leading axis.

        Raises:
            ValueError: The arrays do not fit each other or the batches before.
            UserError: They cannot be written, for example because the disk is full.
        """
        if len({len(values) for values in fields.values()}) != 1:
            raise ValueError(f"fields differ in their number of examples: { {n: len(v) for n, v in fields.items()} }")
        arrays: dict[str, np.ndarray] = {}
        for name, values in fields.items():
            if isinstance(values, np.ndarray):
                arrays[name] = _plain(name, values)
            else:
                arrays[name] = _plain(name, np.concatenate(values))
                arrays[name + OFFSETS] = self._offsets(split, name, [len(value) for value in values])
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
                with suppress(OSError):  # the disk is full: the rest of the buffer cannot be written
                    spool.file.close()
            if self._scratch is not None:
                shutil.rmtree(self._scratch, ignore_errors=True)

    def _commit(self) -> None:
        assert self._scratch is not None
        if not self._splits or not all(spool.count for spool in self._all_spools()):
            raise UserError(f"{self.path} was not written: there are no examples for it.")
        for spool in self._all_spools():
            spool.file.close()
        finished = self._scratch / "store.h5"
        attributes = {
            "spec": canonical_json(self.spec),
            "fingerprint": fingerprint(self.spec),
            "categories": json.dumps(self.categories),
            "provenance": json.dumps(self.provenance),
        }
        _reserve(finished, sum(map(len, attributes.values())), [spool.nbytes for spool in self._all_spools()])
        # The 1.10 file format carries checksums of its metadata and allows attributes past 64 KiB (long provenance).
        options = {"libver": ("v110", "v110"), "track_order": True, "alignment_threshold": 1, "alignment_interval": 64}
        with h5py.File(finished, "w", **options) as file:
            file.attrs["format"] = FORMAT
            file.attrs["format_version"] = 2 if any(name.endswith(OFFSETS) for name in self._names()) else 1
            file.attrs["domain"] = self.domain
            file.attrs.update(attributes)
            for split, spools in self._splits.items():
                for name, spool in spools.items():
                    data = np.memmap(spool.file.name, spool.dtype, mode="r", shape=(spool.count, *spool.shape))
                    dataset = file.create_dataset(f"{split}/{name}", data=data)
                    dataset.attrs["sha256"] = spool.hash.hexdigest()
        sync(finished)
        os.replace(finished, self.path)
        sync(self.path.parent)

    def _offsets(self, split: str, name: str, lengths: list[int]) -> np.ndarray:
        """Return where the next examples of a ragged field end; before its first ones the 0 where they begin."""
        written = self._splits.get(split, {}).get(name)
        ends = np.cumsum([written.count if written else 0, *lengths], dtype=np.int64)
        return ends[1:] if written else ends

    def _spool(self, split: str, name: str, array: np.ndarray) -> _Spool:
        if self._scratch is None:
            raise ValueError("a StoreWriter is appended to inside its `with` block")
        if any(not part or "/" in part or part.startswith(".") for part in (split, name)):
            raise ValueError(f"not a name for a split or field: {split!r}, {name!r}")
        with self._disk_errors():
            return _Spool((self._scratch / f"{split}.{name}").open("wb"), array.dtype, array.shape[1:])

    def _names(self) -> set[str]:
        return {name for spools in self._splits.values() for name in spools}

    def _all_spools(self) -> Iterator[_Spool]:
        return (spool for spools in self._splits.values() for spool in spools.values())

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # HDF5 raises RuntimeError where a file cannot be closed
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            raise UserError(
                f"cannot write the store {self.path} ({reason}): make room or choose another place."
            ) from error


def write_store(
    path: str | Path,
    *,
    domain: str,
    spec: Mapping[str, Any],
    splits: Mapping[str, Mapping[str, np.ndarray | Sequence[np.ndarray]]],
    categories: Mapping[str, Sequence[str]] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write arrays that are in memory as a store; see `StoreWriter` for the arguments and what may go wrong.

    Args:
        path: Where it will lie.
        domain: The domain it belongs to.
        spec: The settings of its features.
        splits: For each split its fields, each an array (examples, …) or a list of arrays.
        categories: For a field of integers, what each integer stands for.
        provenance: Where the examples came from.
    """
    with StoreWriter(path, domain=domain, spec=spec, categories=categories, provenance=provenance) as writer:
        for split, fields in splits.items():
            writer.append(split, fields)


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    """Return a field in the form it has in the file: C order, little-endian; refuse types without a fixed size."""
    array = np.asarray(array)
    if array.ndim == 0 or array.dtype.kind not in "biufc":
        raise ValueError(f"field {name!r} must be an array of numbers with a leading axis of examples")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _reserve(path: Path, attributes: int, datasets: Sequence[int]) -> None:
    """Make sure that there is disk space for a store, because HDF5 crashes the process when the disk is full.

    Args:
        path: The file, which is made.
        attributes: Bytes of what describes the store.
        datasets: Bytes of each field.
    """
    room = ROOM + 2 * attributes + sum(ROOM + nbytes for nbytes in datasets)
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, room)
