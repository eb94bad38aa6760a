"""Files and folders that are written whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.processes import is_main, wait

FILE_SUFFIXES = {".png", ".jpg", ".jpeg", ".svg", ".npz", ".npy", ".csv", ".json", ".h5", ".wav", ".flac"}
"""File name suffixes that an output folder must not have, because such a name is meant as a file."""


@contextmanager
def replacing(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` and renames it to ``path`` if the block succeeds.

    The folder is created if it does not exist. Readers of ``path`` see the older file until the rename. If the block
    fails, that file stays and the temporary one is removed. The content is synced to the disk before the rename, so
    that a power cut leaves one of the two files intact. Of several processes at one task only the main one writes; the
    files of the others are discarded.

    >>> with replacing("runs/figures.csv") as temporary:
    ...     _ = temporary.write_text("image,bits_per_dim")
    >>> Path("runs/figures.csv").read_text()
    'image,bits_per_dim'

    Args:
        path: The file.
        durable: Sync to the disk before the rename; False for one of very many files.

    Raises:
        OSError: from the block or from the file system; it carries ``path`` as its file name, never the temporary one.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if is_main():
            if durable:
                sync(temporary)
            os.replace(temporary, path)
            if durable:
                sync(path.parent)
    except OSError as error:
        if error.filename in (None, str(temporary), temporary):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Refuse to replace a file, before any work, unless that is asked for.

    Args:
        out: The file to write.
        overwrite: Replace it if it exists.

    Raises:
        UserError: If it exists and is not to be replaced.
    """
    if is_main() and out.exists() and not overwrite:
        raise UserError(f"{out} exists already: choose another --out, or replace it by --overwrite.")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a folder under a temporary name, which is renamed to ``out`` if the block succeeds and removed otherwise.

    Of several processes at one task only the main one writes, as in `replacing`.

    Raises:
        UserError: If ``out`` is not empty, or has the name of a file.
    """
    if out.suffix.lower() in FILE_SUFFIXES:
        raise UserError(f"--out {out} is to be a folder: give a name without {out.suffix}.")
    if is_main() and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already: choose another --out, or remove it.")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if is_main():
            os.replace(temporary, out)
        wait()  # until the folder has its name
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """Syncs a file's content, or a folder's list of names, to the disk."""
    windows = os.name == "nt"  # it syncs files that are open for writing, and no folders
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
