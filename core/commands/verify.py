"""Find out whether files are as they were written: ``arflows verify PATH``."""

from importlib.metadata import entry_points
from pathlib import Path

from arflows.core.runtime.errors import UserError

GROUP = "arflows.verifiers"
"""Entry points of functions that take a path, and return what they found sound there, or None if it is not theirs."""


def verify(path: Path) -> None:
    """Compare every byte of a store, a model folder or the folder of a run with its checksum.

    Args:
        path: What to look at.
    """
    if not path.exists():
        raise UserError(f"there is no {path}: check the path.")
    found = [told for entry in sorted(entry_points(group=GROUP)) if (told := entry.load()(path)) is not None]
    if not found:
        raise UserError(f"{path} is no store, no model folder and no folder of a run: give one of these.")
    for told in found:
        print(f"{told}: sound")
