"""The settings of examples that data and model must share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from arflows.core.runtime.errors import UserError
from arflows.data.fingerprint import fingerprint


@dataclass(frozen=True)
class Spec:
    """The base of each domain's spec, a frozen dataclass of plain values: stored with the data, known to the model."""

    def as_dict(self) -> dict[str, Any]:
        """Return the settings in a form for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Read what `as_dict` gave.

        Raises:
            UserError: A setting is missing, or unknown to this version.
        """
        try:
            return cls(**settings)
        except TypeError as error:
            known = ", ".join(field.name for field in dataclasses.fields(cls))
            raise UserError(
                f"the data's settings must be {known}, not {', '.join(settings)}: update arflows, or prepare the data "
                "again."
            ) from error

    def fingerprint(self) -> str:
        """Return a short hash that equal settings share."""
        return fingerprint(self.as_dict())

    def differences(self, other: Self) -> list[str]:
        """Name each setting that differs, with both values: ``["height 32 ≠ 64", …]``; empty if none does."""
        mine, theirs = self.as_dict(), other.as_dict()
        return [f"{name} {mine[name]} ≠ {theirs[name]}" for name in mine if mine[name] != theirs[name]]
