"""Safe reading of arrays from untrusted ``.npy``, ``.npz`` and HDF5 files.

No code in such a file is run, no other file is opened because of it, and no memory is allocated for content that is
not there: sizes are checked before anything is read.
"""

from __future__ import annotations

import lzma
import math
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import h5py
import numpy as np

from arflows.core.runtime.errors import UserError

LONGEST_HEADER = 10_000
"""Maximum bytes of an array's header; for numbers it takes about a hundred."""

CHUNK = 1 << 24
"""Bytes read at a time."""

KNOWN_FILTERS = {
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_SZIP,
    h5py.h5z.FILTER_NBIT,
    h5py.h5z.FILTER_SCALEOFFSET,
    h5py.h5z.FILTER_LZF,
}
"""Filters built into HDF5; any other would make it load a plug-in, which is code."""


def read_npy(path: Path) -> np.ndarray:
    """Read the one array of an ``.npy`` file.

    Raises:
        UserError: It is damaged, holds Python objects, or claims more than there is.
    """
    with _sentence(path), path.open("rb") as file:
        return _array(path, path.stem, file, path.stat().st_size)


def read_npz(path: Path, only: set[str] | None = None) -> dict[str, np.ndarray]:
    """Read the arrays of an ``.npz`` file.

    Args:
        path: The file.
        only: The names of those that are wanted; None for all.

    Raises:
        UserError: It is damaged, holds Python objects, or would take more memory than there is.
    """
    with _sentence(path), zipfile.ZipFile(path) as archive:
        parts = {part.filename.removesuffix(".npy"): part for part in archive.infolist()}
        wanted = {name: part for name, part in parts.items() if only is None or name in only}
        _check_memory(path, sum(part.file_size for part in wanted.values()))
        arrays = {}
        for name, part in wanted.items():
            with archive.open(part) as file:
                arrays[name] = _array(path, name, file, part.file_size)
        return arrays


def npz_names(path: Path) -> list[str]:
    """The names of the arrays in an ``.npz`` file.

    Raises:
        UserError: It is damaged.
    """
    with _sentence(path), zipfile.ZipFile(path) as archive:
        return [part.filename.removesuffix(".npy") for part in archive.infolist()]


def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays at the top of an HDF5 file.

    Raises:
        UserError: It is damaged, leads to other files, needs a plug-in, or would take more memory than there is.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            check_heaps(path, file)
            datasets = dict(_datasets(path, file))
            _check_memory(path, sum(dataset.nbytes for dataset in datasets.values()))
            return {name: dataset[...] for name, dataset in datasets.items()}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({_first_line(error)}): copy it again.") from error


def check_heaps(path: Path, file: h5py.File) -> None:
    """Make sure that HDF5 gets to the end of each heap, where text of any length lies: of some it reads for ever.

    Heaps ("global heap collections" in HDF5's specification of its format, version 1) are looked for where no dataset
    has its numbers, so that little is read.

    Args:
        path: The file.
        file: The same, open; none of its text has been read.

    Raises:
        ValueError: One is damaged.
    """
    taken: list[tuple[int, int]] = []

    def take(_: str, member: h5py.Group | h5py.Dataset) -> None:
        if isinstance(member, h5py.Dataset) and (offset := member.id.get_offset()) is not None:
            taken.append((offset, offset + member.id.get_storage_size()))

    file.visititems(take)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = 0
        for begin, end in (*sorted(taken), (len(content), 0)):
            while (start := content.find(b"GCOL\x01\0\0\0", start, begin)) >= 0:
                start = _end_of_heap(content, start)
            start = max(begin, end) if start < 0 else max(start, end)


def _end_of_heap(content: mmap.mmap, start: int) -> int:
    """Return the end of a heap, found by walking through its objects as HDF5 does."""
    end = start + int.from_bytes(content[start + 8 : start + 16], "little")
    at = start + 16
    while at + 16 <= end <= len(content):
        index, size = (
            int.from_bytes(content[at : at + 2], "little"),
            int.from_bytes(content[at + 8 : at + 16], "little"),
        )
        at += 16 + (size + 7) // 8 * 8 if index else size
        if not index and not size:
            break
    if not at <= end <= len(content) or at + 16 <= end:
        raise ValueError("a heap of text is damaged")
    return end


def _datasets(path: Path, file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise UserError(f"{path}: {name!r} leads elsewhere, which is refused: save the arrays themselves.")
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset):
            continue
        if dataset.external or dataset.is_virtual:
            raise UserError(
                f"{path}: {name!r} refers to other files, which are not opened: save the arrays themselves."
            )
        settings = dataset.id.get_create_plist()
        filters = {settings.get_filter(index)[0] for index in range(settings.get_nfilters())}
        if unknown := filters - KNOWN_FILTERS:
            raise UserError(
                f"{path}: {name!r} is packed by the filter {min(unknown)}, for which HDF5 would load a plug-in: save "
                "it without, or with gzip."
            )
        yield name, dataset


def _array(path: Path, name: str, file: IO[bytes], size: int) -> np.ndarray:
    """Read an array whose description fits the bytes that there are."""
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"{name} is in an unknown version of NumPy's format")
    shape, fortran_order, dtype = read_header[version](file, max_header_size=LONGEST_HEADER)
    if dtype.hasobject:
        raise UserError(f"{path} holds arrays of Python objects, which are refused: save arrays of numbers.")
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > size:
        raise ValueError(f"{name} claims {nbytes:,} bytes, and there are {size:,}")
    _check_memory(path, nbytes)
    content = np.empty(nbytes, np.uint8)
    there = 0
    while there < nbytes and (count := file.readinto(content.data[there : there + CHUNK])):  # type: ignore[attr-defined]
        there += count
    if there < nbytes:
        raise ValueError(f"{name} is cut off after {there:,} of {nbytes:,} bytes")
    return content.view(dtype).reshape(shape, order="F" if fortran_order else "C")


def _check_memory(path: Path, nbytes: int) -> None:
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows; there NumPy refuses what does not fit
        return
    if nbytes > memory:
        raise UserError(
            f"{path} unfolds to {nbytes / 2**30:,.1f} GiB, and this machine has {memory / 2**30:,.1f} GiB of memory: "
            "save its arrays in parts."
        )


@contextmanager
def _sentence(path: Path) -> Iterator[None]:
    """Convert the exceptions of readers of broken arrays and zip files into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        ArithmeticError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        SyntaxError,
        RuntimeError,
        struct.error,
    ) as error:
        raise UserError(
            f"{path} is damaged, or holds no arrays of numbers ({_first_line(error)}): save it again."
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".:") if text else type(error).__name__
