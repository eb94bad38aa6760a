"""Files below a folder, and the names that folders of splits go by."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def walk(folder: Path) -> Iterator[str]:
    """Yield the path below ``folder`` of every file in it and its subfolders; hidden ones are passed over."""
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


def printable(path: str) -> str:
    """Return a path in a form that can be printed and stored, even where the file system's encoding was broken."""
    return path.encode(errors="backslashreplace").decode()
