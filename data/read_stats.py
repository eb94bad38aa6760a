"""Counts of the examples of a source: read, converted, skipped, and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ReadStats:
    """Counts of the examples of one split.

    Attributes:
        read: Examples looked at.
        written: Examples used.
        converted: Number of examples by the conversion they went through.
        skipped: Names of the examples left out, by the reason.
    """

    read: int = 0
    written: int = 0
    converted: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def summary(self) -> str:
        """Return one line with the number of skipped examples, the reasons, and the first three names of each."""
        return ", ".join(
            f"{len(names):,} {reason} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for reason, names in self.skipped.items()
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the counts, and the name of every skipped example under its reason, for the provenance."""
        return {
            "read": self.read,
            "written": self.written,
            "converted": dict(self.converted),
            "skipped": dict(self.skipped),
        }
