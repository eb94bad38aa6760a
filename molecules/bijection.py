"""The bijection between the decisions on a molecule and the unit cube."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from arflows.core.bijections import Bijection
from arflows.core.runtime.machine import widest_float
from arflows.molecules.conditioner import GraphTransformer
from arflows.molecules.decisions import Decisions, decisions
from arflows.molecules.generation import FromLatents, cdf, grow, latent_shape
from arflows.molecules.representation import MoleculeSpec
from arflows.molecules.stream import MoleculeStream


class DecisionCDFs(Bijection):
    """Map of each decision on a molecule by the CDF of its category.

    A decision for category k is the interval [k, k + 1), and its CDF is piecewise linear, with logits that depend on
    the decisions before. The density is constant on an interval, so that the log-determinant of a whole molecule is the
    exact log-probability of its decisions, wherever in the intervals they are put; here, in their middles. Latents are
    numbers in [0, 1], one for each decision that a molecule can have (`latent_shape`); those that a molecule does not
    use are ½, and have no effect.

    Args:
        spec: Settings of the molecules.
        conditioner: The network that computes the logits.
    """

    def __init__(self, spec: MoleculeSpec, conditioner: GraphTransformer) -> None:
        super().__init__()
        self.spec = spec
        self.conditioner = conditioner

    def forward(
        self, x: UInt8[Tensor, "batch packed"], context: Float[Tensor, "batch context"] | None = None
    ) -> tuple[Float[Tensor, "batch atoms steps"], Float[Tensor, " batch"]]:
        """Data → latent: all decisions in one pass."""
        given = self.read(x)
        types, rows = (logits.to(widest_float(x.device)) for logits in self.logits(given, context))
        stop = self._stops(given)
        z = types.new_full((len(x), *latent_shape(self.spec)), 0.5)
        steps = torch.arange(types.shape[1], device=x.device)
        z[:, : types.shape[1], 0] = torch.where(
            steps <= given.sizes[:, None], cdf(types.shape[2])(stop + 0.5, types)[0], 0.5
        )
        step = 1 + given.row_before.sum(2)
        molecule, row = given.row_real.nonzero(as_tuple=True)
        row_latents = cdf(rows.shape[2])(given.row_choice + 0.5, rows)[0]
        z[molecule, given.row_atom[molecule, row], step[molecule, row]] = row_latents[molecule, row]
        return z, self._sum(given, types, rows).to(self.conditioner.to_type.weight.dtype)

    def inverse(
        self, z: Float[Tensor, "batch atoms steps"], context: Float[Tensor, "batch context"] | None = None
    ) -> tuple[UInt8[Tensor, "batch packed"], Float[Tensor, " batch"]]:
        """Latent → data: one decision after the other, without gradients."""
        grown = grow(self.stream(len(z), context), FromLatents(z))
        return grown.packed, -grown.log_prob.to(self.conditioner.to_type.weight.dtype)

    def log_det(
        self, x: UInt8[Tensor, "batch packed"], context: Float[Tensor, "batch context"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Log-determinant of `forward` alone, at lower cost."""
        given = self.read(x)
        return self._sum(given, *self.logits(given, context))

    @torch.no_grad()
    def stream(self, batch: int, context: Float[Tensor, "batch context"] | None = None) -> MoleculeStream:
        """Start a batch of molecules."""
        return MoleculeStream(self.conditioner, self.spec, batch, context)

    def read(self, x: UInt8[Tensor, "batch packed"]) -> Decisions:
        """The decisions that molecules are made by."""
        spec = self.spec
        return decisions(x, spec.max_atoms, len(spec.atom_types), spec.max_back_bonds, spec.order == "dfs")

    def logits(
        self, given: Decisions, context: Float[Tensor, "batch context"] | None
    ) -> tuple[Float[Tensor, "batch types categories"], Float[Tensor, "batch rows choices"]]:
        """Logits of types and of bonds: −∞ for decisions that the representation does not have.

        There is no molecule without atoms, and none with more than the spec has. An atom has at least one bond to
        earlier ones, and they come in their order.
        """
        types, rows = self.conditioner(given, context)
        stop = len(self.spec.atom_types)
        no_type = torch.zeros(types.shape[1:], dtype=torch.bool, device=types.device)
        no_type[0, stop] = True
        no_type[self.spec.max_atoms :, :stop] = True
        first = ~given.row_before.any(2, keepdim=True) & given.row_real[..., None]
        no_bond = torch.cat([first, ~given.allowed.repeat_interleave(3, 2)], 2)
        return types.float().masked_fill(no_type, -torch.inf), rows.float().masked_fill(no_bond, -torch.inf)

    def prefix_log_prob(
        self, x: UInt8[Tensor, "batch packed"], context: Float[Tensor, "batch context"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Log-probability that a molecule begins with these decisions, complete or not."""
        given = self.read(x)
        return self._sum(given, *self.logits(given, context), ends=False)

    def _stops(self, given: Decisions) -> Tensor:
        """Return the decisions on types, the decision to stop included."""
        return F.pad(given.types, (0, 1), value=len(self.spec.atom_types))

    def _sum(self, given: Decisions, types: Tensor, rows: Tensor, ends: bool = True) -> Float[Tensor, " batch"]:
        type_log_prob = -F.cross_entropy(types.mT, self._stops(given), reduction="none")
        row_log_prob = -F.cross_entropy(rows.mT, given.row_choice, reduction="none")
        steps = torch.arange(types.shape[1], device=types.device)
        decided = steps < given.sizes[:, None] + int(ends)
        return type_log_prob.masked_fill(~decided, 0).sum(1) + row_log_prob.masked_fill(~given.row_real, 0).sum(1)
