"""Properties of training molecules that a conditional flow keeps."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from arflows.core.bijections import InitializedFromData, Standardize

KNOWN_ROWS = 1024
"""Number of training molecules whose properties a conditional model keeps."""


class KnownProperties(InitializedFromData):
    """Standardisation of properties to zero mean and unit variance over the training data.

    Args:
        count: Number of properties.

    Attributes:
        rows: Properties of some training molecules, by which wanted properties are completed; (`KNOWN_ROWS`, count).
        extremes: The lowest and the highest value of each property over all training molecules, (2, count); NaN for
            models that were saved by versions of arflows that did not keep them.
    """

    rows: Tensor
    extremes: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.standardize = Standardize(count)
        self.register_buffer("rows", torch.zeros(KNOWN_ROWS, count))
        self.register_buffer("extremes", torch.full((2, count), torch.nan))

    def _set_from(self, properties: Float[Tensor, "batch properties"]) -> None:
        """Keep rows of training data, and their extremes if those of all training data are not known."""
        repeated = torch.arange(KNOWN_ROWS, device=properties.device) % len(properties)
        self.rows.copy_(properties[repeated])
        self.set_extremes(properties.amin(0), properties.amax(0))

    @torch.no_grad()
    def set_extremes(self, low: Float[Tensor, " properties"], high: Float[Tensor, " properties"]) -> None:
        """Keep the lowest and the highest values of all training data; those that were kept before stay."""
        if self.extremes.isnan().all():
            self.extremes.copy_(torch.stack([low, high]))

    def forward(self, properties: Float[Tensor, "batch properties"]) -> Float[Tensor, "batch properties"]:
        """Standardise properties."""
        return self.standardize(properties)[0]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        state_dict.setdefault(f"{prefix}extremes", self.extremes)  # older files lack them
        super()._load_from_state_dict(state_dict, prefix, *arguments)
