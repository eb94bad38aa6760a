"""Settings of tables that data and model share."""

from __future__ import annotations

from dataclasses import dataclass

from arflows.data.spec import Spec


@dataclass(frozen=True)
class TableSpec(Spec):
    """The settings that data and model must share.

    Attributes:
        features: Numbers in an example.
        context: Numbers that its density is conditioned on; 0 for nothing.

    >>> TableSpec(features=3).differences(TableSpec(features=3, context=1))
    ['context 0 ≠ 1']
    """

    features: int
    context: int = 0
