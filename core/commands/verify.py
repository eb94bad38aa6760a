"""Checksum verification: ``arflows verify PATH``."""

from importlib.metadata import entry_points
from pathlib import Path

from arflows.core.runtime.errors import UserError

GROUP = "arflows.verifiers"
"""Entry points of functions that verify a path: they return a description, or None for a path of another kind."""


def verify(path: Path) -> None:
    """Compare every byte of a store, a model folder or the folder of a run with its checksum.

    Args:
        path: The store, model folder or run folder.
    """
    if not path.exists():
        raise UserError(f"there is no {path}: check the path.")
    found = [text for entry in sorted(entry_points(group=GROUP)) if (text := entry.load()(path)) is not None]
    if not found:
        raise UserError(f"{path} is neither a store nor a model folder nor a run folder: give one of these.")
    for text in found:
        print(f"{text}: sound")
