"""What became of the examples of a source: how many were read, converted, skipped, and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """What became of the examples of one split."""

    read: int = 0
    written: int = 0
    converted: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def reasons(self) -> str:
        """Say in one line how many examples were skipped, why, and which (the first three of each reason)."""
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
