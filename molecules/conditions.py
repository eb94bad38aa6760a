"""What a conditional flow over molecules knows of their properties."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from arflows.core.bijections import InitializedFromData, Standardize

KNOWN_ROWS = 1024
"""Training molecules whose properties a conditional model keeps."""


class KnownProperties(InitializedFromData):
    """Properties as the network sees them, of zero mean and unit variance over the training data.

    Attributes:
        rows: Those of some training molecules, from which wanted ones are completed.
    """

    rows: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.standardize = Standardize(count)
        self.register_buffer("rows", torch.zeros(KNOWN_ROWS, count))

    def _set_from(self, properties: Float[Tensor, "batch properties"]) -> None:
        """Keeps rows of training data."""
        places = torch.arange(KNOWN_ROWS, device=properties.device) % len(properties)
        self.rows.copy_(properties[places])

    def forward(self, properties: Float[Tensor, "batch properties"]) -> Float[Tensor, "batch properties"]:
        """Standardises."""
        return self.standardize(properties)[0]
