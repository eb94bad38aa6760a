"""Files below a folder, names of splits, and names of output files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def walk(folder: Path) -> Iterator[str]:
    """Yield the path below ``folder`` of every file in it and its subfolders, except hidden ones."""
    seen = set()
    for parent, subfolders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link that leads back up
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            if not name.startswith("."):
                yield (Path(parent) / name).relative_to(folder).as_posix()


class FileNames:
    """Names of output files for examples: no two examples get the same.

    >>> names = FileNames((".wav",))
    >>> names("a/1.wav"), names("a_1"), names("spk.0")
    ('a_1', 'a_1-2', 'spk.0')

    Args:
        suffixes: Suffixes, in lower case, that are removed from the examples' names; other dots stay.
    """

    def __init__(self, suffixes: Iterable[str] = ()) -> None:
        self._suffixes = tuple(suffixes)
        self._taken: set[str] = set()

    def __call__(self, name: str) -> str:
        """Return the name of the file of an example, without suffix; differs from all names returned before."""
        suffix = next((end for end in self._suffixes if name.lower().endswith(end)), "")
        stem = name[: len(name) - len(suffix)].replace("/", "_") or "example"
        unique, count = stem, 1
        while unique.casefold() in self._taken:  # file systems may ignore case
            count += 1
            unique = f"{stem}-{count}"
        self._taken.add(unique.casefold())
        return unique


def printable(path: str) -> str:
    """Return a path in a form that can be printed and stored, even where the file system's encoding was broken."""
    return path.encode(errors="backslashreplace").decode()
