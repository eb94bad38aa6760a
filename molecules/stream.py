"""Incremental evaluation of the conditioner, atom by atom."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from arflows.molecules.conditioner import MOST_USED, START, GraphTransformer, relation
from arflows.molecules.decisions import FAR, add_atom
from arflows.molecules.representation import MoleculeSpec


class MoleculeStream:
    """Growing molecules and the cached activations of their atoms; all have the same number of atoms.

    Keys and values of attention are written to a cache that has its full size from the start. A step costs as much as
    the parallel pass for one atom. Finished molecules stay in the batch until `keep` drops them.

    Attributes:
        ids: Index of the molecule of each row in the initial batch.
        atom: Number of complete atoms; the next one's index.
        types: Of the atoms; the number of types for those to come.
        orders: Of the bonds.
        used: Sum of the orders of each atom's bonds.
        bound: Number of bonds of the next atom to earlier ones, so far.
    """

    def __init__(self, conditioner: GraphTransformer, spec: MoleculeSpec, batch: int, context: Tensor | None) -> None:
        self.conditioner = conditioner
        self.spec = spec
        self.context = context
        device = conditioner.to_type.weight.device
        dtype = conditioner.to_type.weight.dtype
        size, width, blocks = spec.max_atoms, conditioner.norm.normalized_shape[0], len(conditioner.blocks)
        heads = conditioner.heads
        self.latest_first = spec.order == "dfs"
        self.ids = torch.arange(batch, device=device)
        self.atom = 0
        self.types = torch.full((batch, size), len(spec.atom_types), device=device)
        self.orders = torch.zeros(batch, size, size, dtype=torch.uint8, device=device)
        self.distances = torch.full((batch, size, size), FAR, dtype=torch.uint8, device=device)
        self.used = torch.zeros(batch, size, dtype=torch.uint8, device=device)
        self.cache = torch.empty(blocks, 2, batch, heads, size + 1, width // heads, dtype=dtype, device=device)
        self.keys = torch.empty(batch, size, conditioner.pointer, dtype=dtype, device=device)
        self.partners = torch.empty(batch, size, width, dtype=dtype, device=device)
        start = conditioner.start(batch, context)
        bias = conditioner.attention_bias[START * (MOST_USED + 1)].view(blocks, 1, heads, 1, 1)
        self.hidden = self._attend(start, bias.expand(-1, batch, -1, -1, -1), 1)
        self._begin_row()

    def __len__(self) -> int:
        return len(self.ids)

    def type_logits(self, rows: Int64[Tensor, " rows"]) -> Float[Tensor, "rows types"]:
        """Logits of the next atom's type, or to stop, for some of the molecules.

        They are −∞ where the representation has no such decision.
        """
        logits = self.conditioner.to_type(self.hidden[rows]).float()
        count = len(self.spec.atom_types)
        if self.atom == 0:
            logits[:, count] = -torch.inf
        if self.atom == self.spec.max_atoms:
            logits[:, :count] = -torch.inf
        return logits

    def choose_type(self, rows: Int64[Tensor, " rows"], types: Int64[Tensor, " rows"]) -> None:
        """Set the type of the next atom, in some of the molecules."""
        self.types[rows, self.atom] = types

    def bond_logits(self, rows: Int64[Tensor, " rows"]) -> Float[Tensor, "rows choices"]:
        """Logits of the next decision on a bond, for some of the molecules."""
        atom = self.atom
        logits = self.conditioner.rows(
            self.hidden[rows, None],
            self.types[rows, atom : atom + 1],
            self.so_far[rows, None],
            self.keys[rows, :atom],
            self.types[rows, :atom],
            self.used[rows, None, :atom],
            self.nearness[rows, None],
        )[:, 0].float()
        forbidden = torch.cat([self.bound[rows, None] == 0, ~self.allowed[rows].repeat_interleave(3, 1)], 1)
        return logits.masked_fill_(forbidden, -torch.inf)

    def bind(
        self, rows: Int64[Tensor, " rows"], partner: Int64[Tensor, " rows"], order: Int64[Tensor, " rows"]
    ) -> None:
        """Bind the next atom to an earlier one, in some of the molecules.

        Args:
            rows: Rows of these molecules.
            partner: Index of the earlier atom.
            order: Order of the bond.
        """
        atom = self.atom
        near = self.nearness[rows, partner]
        bond = self.conditioner.bonds(order, self.types[rows, partner], near)
        self.bonds[rows] += bond
        self.so_far[rows] += bond + self.partners[rows, partner]
        self.orders[rows, atom, partner] = order.to(torch.uint8)
        self.orders[rows, partner, atom] = order.to(torch.uint8)
        self.bound[rows] += 1
        steps = self.distances[rows, partner, :atom]
        first = (self.bound[rows] == 1)[:, None]
        before = torch.where(first, FAR, self.nearness[rows] - (FAR + 1)).to(torch.uint8)
        self.nearness[rows] = before.minimum(steps) + (FAR + 1)
        candidates = torch.arange(atom, device=rows.device)
        beyond = candidates < partner[:, None] if self.latest_first else candidates > partner[:, None]
        room = (self.bound[rows] < self.spec.max_back_bonds)[:, None]
        self.allowed[rows] &= beyond & room

    def finish_atom(self) -> None:
        """Add the atom to the caches, once it has its bonds."""
        atom = self.atom
        # The sums of earlier atoms count bonds to this one only from here on: decisions see them as they were before.
        self.used[:, : atom + 1] += self.orders[:, atom, : atom + 1]
        self.used[:, atom] = self.orders[:, atom, :atom].sum(1, dtype=torch.uint8)
        add_atom(self.distances, self.orders[:, atom, :atom] > 0)
        token = self.conditioner.tokens(self.types[:, atom : atom + 1], self.bonds[:, None], atom)
        token = token + self.conditioner.shift(self.context)
        seen = relation(self.distances[:, atom, : atom + 1], self.orders[:, atom, : atom + 1])
        index = F.pad(seen, (1, 0), value=START).int() * (MOST_USED + 1)
        index += F.pad(self.used[:, : atom + 1].clamp_max(MOST_USED), (1, 0))
        bias = F.embedding(index, self.conditioner.attention_bias)
        bias = bias.unflatten(-1, (-1, self.conditioner.heads)).permute(2, 0, 3, 1)[:, :, :, None]
        self.hidden = self._attend(token, bias, atom + 2)
        self.keys[:, atom] = self.conditioner.key(self.hidden)
        self.partners[:, atom] = self.conditioner.chosen(self.hidden)
        self.atom += 1
        self._begin_row()

    def keep(self, rows: Int64[Tensor, " kept"]) -> None:
        """Keep some of the molecules, in any order, with repetitions; call it only between atoms."""
        for name in ("ids", "types", "orders", "distances", "used", "keys", "partners", "hidden"):
            setattr(self, name, getattr(self, name).index_select(0, rows))
        filled = self.cache[..., : self.atom + 1, :].index_select(2, rows)
        self.cache = self.cache.new_empty(*filled.shape[:4], self.cache.shape[4], filled.shape[5])
        self.cache[..., : self.atom + 1, :] = filled
        if self.context is not None:
            self.context = self.context.index_select(0, rows)
        self._begin_row()

    def _attend(self, token: Tensor, biases: Tensor, stop: int) -> Float[Tensor, "batch width"]:
        for block, bias, cache in zip(self.conditioner.blocks, biases, self.cache, strict=True):
            token = block(token, bias, cache[:, :, :, :stop])
        return self.conditioner.norm(token)[:, 0]

    def _begin_row(self) -> None:
        batch, atom = len(self.ids), self.atom
        self.bonds = torch.zeros_like(self.hidden)
        self.so_far = torch.zeros_like(self.hidden)
        self.bound = torch.zeros(batch, dtype=torch.long, device=self.ids.device)
        self.nearness = self.distances[:, atom - 1, :atom].clone() if atom else self.distances[:, 0, :0]
        self.allowed = torch.ones(batch, atom, dtype=torch.bool, device=self.ids.device)
