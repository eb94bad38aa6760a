"""Small run of a domain into which faults are injected: in ``tests/<domain>/faults.py``, a function ``small``."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Small:
    """A data set and a run of seconds.

    Attributes:
        domain: The word after ``arflows``.
        prepare: The words after ``prepare`` that make the store, without ``--out``.
        recipe: A training config of some 40 steps in two epochs or more, with validation, without ``out`` and store.
        score: The words after ``score`` that say what, some ten examples, without ``--model`` and ``--out``.
        hostile: For each file that must be refused, what it is; as the words after ``prepare``, without ``--out``.
    """

    domain: str
    prepare: list[str]
    recipe: Path
    score: list[str]
    hostile: dict[str, list[str]]
