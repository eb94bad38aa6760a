"""The bijection between a molecule's decisions and points of the unit cube."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from arflows.core.bijections import Bijection, PiecewiseLinearCDF
from arflows.molecules.conditioner import GraphTransformer
from arflows.molecules.decisions import Decisions, decisions
from arflows.molecules.representation import MoleculeSpec


class DecisionCDFs(Bijection):
    """Maps every decision of a molecule, made continuous, by a piecewise-linear CDF of what was decided before."""

    def __init__(self, spec: MoleculeSpec, conditioner: GraphTransformer) -> None:
        super().__init__()
        self.spec = spec
        self.conditioner = conditioner

    def log_det(
        self, x: UInt8[Tensor, "batch packed"], context: Float[Tensor, "batch context"] | None = None
    ) -> Float[Tensor, " batch"]:
        given = self.read(x)
        types, rows = self.possible(given, *self.conditioner(given, context))
        stop = F.pad(given.types, (0, 1), value=len(self.spec.atom_types))
        of_types = -F.cross_entropy(types.mT, stop, reduction="none")
        of_rows = -F.cross_entropy(rows.mT, given.row_choice, reduction="none")
        places = torch.arange(stop.shape[1], device=stop.device)
        return of_types.masked_fill(places > given.sizes[:, None], 0).sum(1) + of_rows.masked_fill(
            ~given.row_real, 0
        ).sum(1)

    def read(self, x: UInt8[Tensor, "batch packed"]) -> Decisions:
        spec = self.spec
        return decisions(x, spec.max_atoms, len(spec.atom_types), spec.max_back_bonds, spec.order == "dfs")

    def possible(self, given: Decisions, types: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """−∞ where decisions are no part of the representation."""
        count = len(self.spec.atom_types)
        forbidden = torch.zeros(types.shape[1:], dtype=torch.bool, device=types.device)
        forbidden[0, count] = True
        forbidden[self.spec.max_atoms :, :count] = True
        not_allowed = F.pad(~given.allowed.repeat_interleave(3, 2), (1, 0))
        return (
            types.float().masked_fill(forbidden, -torch.inf),
            rows.float().masked_fill(not_allowed, -torch.inf),
        )

    def forward(self, x, context=None):
        raise NotImplementedError

    def inverse(self, z, context=None):
        raise NotImplementedError
