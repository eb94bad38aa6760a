"""Flows over molecules."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from arflows.core.bases import Uniform
from arflows.core.bijections import Standardize
from arflows.core.errors import UserError
from arflows.core.flow import Flow
from arflows.core.pretrained import Pretrained
from arflows.molecules.bijection import DecisionCDFs
from arflows.molecules.conditioner import GraphTransformer
from arflows.molecules.representation import MoleculeSpec

CHUNK = 64
"""Molecules of similar size that are computed at once; few enough for the cache of a processor."""


class MoleculeFlow(Flow, Pretrained):
    def __init__(
        self,
        spec: dict[str, Any] | None = None,
        width: int = 128,
        layers: int = 5,
        heads: int = 8,
        properties: list[str] | None = None,
    ) -> None:
        if spec is None:
            raise UserError("a flow over molecules needs the spec of its data")
        settings = MoleculeSpec.from_dict(spec)
        names = list(properties or [])
        conditioner = GraphTransformer(
            len(settings.atom_types), settings.max_atoms, width, layers, heads, context_features=len(names)
        )
        super().__init__(
            Uniform((1,)),
            DecisionCDFs(settings, conditioner),
            context_encoder=StandardizedProperties(len(names)) if names else None,
        )
        self.spec = settings
        self.properties = names

    @property
    def likelihood(self) -> Literal["exact", "density", "bound"]:
        return "exact"

    def log_prob(
        self, x: UInt8[Tensor, "batch packed"], context: Float[Tensor, "batch properties"] | None = None
    ) -> Float[Tensor, " batch"]:
        encoded = self._encode_context(context)
        by_size = (x[:, : self.spec.max_atoms] > 0).sum(1).argsort(stable=True)
        parts = [
            self.bijection.log_det(x[rows], None if encoded is None else encoded[rows]) for rows in by_size.split(CHUNK)
        ]
        return torch.cat(parts)[by_size.argsort()]


class StandardizedProperties(nn.Module):
    """Properties as the network sees them: of zero mean and unit variance over the training data."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.standardize = Standardize(count)

    def forward(self, properties: Float[Tensor, "batch properties"]) -> Float[Tensor, "batch properties"]:
        return self.standardize(properties)[0]
