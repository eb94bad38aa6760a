"""Columns of a model: their names, and the offsets that keep large numbers exact in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Float32, Float64

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.pretrained import training_facts
from arflows.data.tables import default_names

if TYPE_CHECKING:
    from arflows.core.flows import VectorFlow

LOOKED_AT = 10_000
"""Rows, at most, from which the loss by rounding is measured."""

MOST_LOST = 0.01
"""Share of distinct values that may become equal to another by rounding to float32."""


@dataclass(frozen=True)
class Columns:
    """Names and offsets of a model's columns, from its training data; otherwise x0, x1, … and 0.

    A model, and a store, hold each number minus the offset of its column, so that times in seconds since 1970 keep
    their fractions in float32. A shift changes no density.

    Attributes:
        features: Names of the data's columns.
        context: Names of the columns conditioned on.
        offsets: Number that is subtracted from each column, those conditioned on last.
    """

    features: tuple[str, ...]
    context: tuple[str, ...]
    offsets: tuple[float, ...]

    @classmethod
    def of(cls, model: str, flow: VectorFlow) -> Self:
        """Read them from the ``training.json`` that `train` leaves with a model, if there is one."""
        data = (training_facts(model) or {"data": {}})["data"]
        known, offsets = data.get("columns", {}), data.get("offsets", {})
        names = default_names(flow.dims + flow.context_features)
        context = tuple(known.get("context", names[flow.dims :])) if flow.context_features else ()
        features = tuple(known.get("x", names[: flow.dims]))
        return cls(
            features,
            context,
            (*offsets.get("x", [0.0] * len(features)), *offsets.get("context", [0.0] * len(context))[: len(context)]),
        )

    @property
    def names(self) -> list[str]:
        """All names, those conditioned on last."""
        return [*self.features, *self.context]


def offset_of(values: Float64[np.ndarray, " rows"]) -> float:
    """Return the offset to subtract from a column before it is rounded to float32; 0 if it gains nothing.

    Args:
        values: The column.

    Returns:
        The median, rounded to the size of the standard deviation, where float32 would merge more than 1 % of the
        distinct values or round by more than 1e-4 of the standard deviation, and subtracting the median makes this at
        least four times better; else 0, so that a model takes numbers as they are.
    """
    spread = float(values.std())
    if not spread:
        return 0.0
    unit = 10.0 ** np.floor(np.log10(spread))
    offset = float(np.round(np.median(values) / unit) * unit)
    error = _rounding_error(values)
    exact, left = _distinct(values)
    harmful = error > 1e-4 * spread or exact - left > MOST_LOST * exact
    return offset if harmful and error > 4 * _rounding_error(values - offset) else 0.0


def to_float32(
    source: str, values: Float64[np.ndarray, "rows columns"], names: list[str], offsets: tuple[float, ...]
) -> Float32[np.ndarray, "rows columns"]:
    """Subtract offsets and round to float32.

    Args:
        source: The table in messages.
        values: Its rows.
        names: Names of its columns.
        offsets: Number that is subtracted from each column.

    Raises:
        UserError: More than 1 % of the distinct values of a column become equal by rounding.
    """
    centred = values - np.array(offsets)
    for index, name in enumerate(names):
        exact, left = _distinct(centred[:, index])
        if exact - left > MOST_LOST * exact:
            raise UserError(
                f"{source}: the {exact:,} distinct values of column {name!r} become {left:,} in float32, in which "
                "models compute: subtract a number near them all, or give the column in a larger unit."
            )
    return np.ascontiguousarray(centred, np.float32)


def as_facts(offsets: tuple[float, ...], features: int) -> dict[str, Any]:
    """Return offsets as a store and ``training.json`` keep them; an empty dictionary if all are 0."""
    return {"offsets": {"x": list(offsets[:features]), "context": list(offsets[features:])}} if any(offsets) else {}


def _distinct(values: Float64[np.ndarray, " rows"]) -> tuple[int, int]:
    """Return the number of distinct values among some rows, in float64 and in float32."""
    some = values[:: -(-len(values) // LOOKED_AT)]
    return len(np.unique(some)), len(np.unique(some.astype(np.float32)))


def _rounding_error(values: Float64[np.ndarray, " rows"]) -> float:
    return float(np.abs(values - values.astype(np.float32)).max())
