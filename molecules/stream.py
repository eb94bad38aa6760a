"""The conditioner at work on molecules that grow, atom by atom, and the loop that makes their decisions."""

from __future__ import annotations

import functools
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from arflows.core.bijections import PiecewiseLinearCDF
from arflows.molecules.conditioner import MOST_USED, START, GraphTransformer, relation
from arflows.molecules.decisions import FAR, add_atom
from arflows.molecules.representation import MoleculeSpec


class MoleculeStream:
    """Molecules in step: all have the same number of atoms so far, and those that stopped are no longer among them.

    Keys and values of attention are written to a cache that has its full size from the start. A step costs what the
    parallel pass spends on an atom.

    Attributes:
        ids: Which of the molecules that were begun each row is.
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

    def type_logits(self) -> Float[Tensor, "batch types"]:
        """Logits of the next atom's type, or to stop: −∞ where the representation has no such decision."""
        logits = self.conditioner.to_type(self.hidden).float()
        count = len(self.spec.atom_types)
        if self.atom == 0:
            logits[:, count] = -torch.inf
        if self.atom == self.spec.max_atoms:
            logits[:, :count] = -torch.inf
        return logits

    def choose_type(self, types: Int64[Tensor, " batch"]) -> None:
        """Gives the next atom its type; none may stop: `keep` those that go on first."""
        self.types[:, self.atom] = types

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
        forbidden = F.pad(~self.allowed[rows].repeat_interleave(3, 1), (1, 0))
        return logits.masked_fill_(forbidden, -torch.inf)

    def bind(
        self, rows: Int64[Tensor, " rows"], partner: Int64[Tensor, " rows"], order: Int64[Tensor, " rows"]
    ) -> None:
        """Binds the next atom to an earlier one, in some of the molecules."""
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
        """Reads the atom, now that it has its bonds."""
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
        """Goes on with some of the molecules alone."""
        for name in ("ids", "types", "orders", "distances", "used", "keys", "partners", "hidden"):
            setattr(self, name, getattr(self, name)[rows])
        self.cache = self.cache[:, :, rows]
        if self.context is not None:
            self.context = self.context[rows]
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


class Rules(Protocol):
    """Which decisions are allowed; see `arflows.molecules.validity.Masks`."""

    def types(self, stream: MoleculeStream) -> Bool[Tensor, "batch types"]:
        """Which types the next atom may have; the last entry is to stop."""

    def bonds(self, stream: MoleculeStream, rows: Int64[Tensor, " rows"]) -> Bool[Tensor, "rows choices"]:
        """Which bonds the next atom of some of the molecules may have; the first entry is to have no more."""


class Decided(Protocol):
    """Where decisions come from."""

    def decide(
        self,
        logits: Float[Tensor, "rows choices"],
        ids: Int64[Tensor, " rows"],
        atom: int,
        step: int,
    ) -> Int64[Tensor, " rows"]:
        """Makes a decision for some of the molecules.

        Args:
            logits: Of the choices.
            ids: Which molecules.
            atom: Which atom: its type at step 0, its bonds from step 1 on.
            step: Which of the decisions on the atom.
        """


class FromLatents:
    """Decisions at given points of the unit cube: the inverse of the decisions' CDFs.

    Args:
        latents: A number for each possible decision, see `latent_shape`.
    """

    def __init__(self, latents: Float[Tensor, "batch atoms steps"]) -> None:
        self.latents = latents

    def decide(self, logits: Tensor, ids: Tensor, atom: int, step: int) -> Tensor:
        """Goes to the bin in which the latent falls."""
        return cdf(logits.shape[1]).inverse(self.latents[ids, atom, step], logits)[0].long()


class Given:
    """Decisions of known molecules, and the latents they correspond to: the middles of the bins.

    Args:
        types: Of each atom, and that of stopping after the last.
        orders: Of the bonds.
        latest_first: The order of an atom's bonds.
        latents: Where the latents are written.
    """

    def __init__(
        self,
        types: Int64[Tensor, "batch places"],
        orders: UInt8[Tensor, "batch atoms atoms"],
        latest_first: bool,
        latents: Float[Tensor, "batch atoms steps"],
    ) -> None:
        self.types = types
        self.latents = latents
        self.orders = orders
        size = orders.shape[1]
        places = torch.arange(size, device=orders.device)
        # Of each atom its earlier partners in the order of decisions, then `size` for the end.
        earlier = (orders > 0) & (places < places[:, None])
        sorted_by = torch.where(earlier, -places if latest_first else places, size)
        ranks = sorted_by.sort(2)
        self.partners = torch.where(ranks.values == size, size, ranks.indices)

    def decide(self, logits: Tensor, ids: Tensor, atom: int, step: int) -> Tensor:
        """Looks the decision up."""
        if step == 0:
            choice = self.types[ids, atom]
        else:
            size = self.orders.shape[1]
            partner = self.partners[ids, atom, step - 1] if step <= size else torch.full_like(ids, size)
            inside = partner.clamp_max(size - 1)
            order = self.orders[ids, atom, inside].long()
            choice = torch.where(partner < size, 3 * partner + order, 0)
        self.latents[ids, atom, step] = cdf(logits.shape[1])(choice + 0.5, logits)[0].to(self.latents)
        return choice


class Grown:
    """Molecules as they came out of a stream.

    Attributes:
        types: Of the atoms; the number of types for none.
        orders: Of the bonds.
        log_prob: Log-probability under the model, in nats.
        log_prob_policy: The same under the policy that decided: with its masks and its temperature.
    """

    def __init__(self, stream: MoleculeStream) -> None:
        batch, size = stream.types.shape
        self.types = torch.full_like(stream.types, len(stream.spec.atom_types))
        self.orders = stream.orders.new_zeros(batch, size, size)
        self.log_prob = torch.zeros(batch, dtype=torch.float64, device=stream.ids.device)
        self.log_prob_policy = torch.zeros_like(self.log_prob)

    def store(self, stream: MoleculeStream, rows: Tensor) -> None:
        """Takes molecules that stopped."""
        self.types[stream.ids[rows]] = stream.types[rows]
        self.orders[stream.ids[rows]] = stream.orders[rows]


def latent_shape(spec: MoleculeSpec) -> tuple[int, int]:
    """Decisions that a molecule can have: for each atom, and the place after the last, its type and its bonds."""
    return spec.max_atoms + 1, spec.max_back_bonds + 2


@functools.cache
def cdf(bins: int) -> PiecewiseLinearCDF:
    """The map of one decision, with category k at [k, k + 1)."""
    return PiecewiseLinearCDF(bins, bins)


@torch.no_grad()
def grow(stream: MoleculeStream, source: Decided, rules: Rules | None = None, temperature: float = 1.0) -> Grown:
    """Makes all decisions of a batch of molecules.

    Args:
        stream: At its beginning.
        source: Where decisions come from.
        rules: Which of them are allowed; None for all that the representation has.
        temperature: Divides the logits.
    """
    grown = Grown(stream)
    stop = len(stream.spec.atom_types)

    def decide(logits: Tensor, allowed: Tensor | None, ids: Tensor, step: int) -> Tensor:
        policy = logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)
        policy = policy if temperature == 1 else policy / temperature
        choice = source.decide(policy, ids, stream.atom, step)
        for total, of in ((grown.log_prob, logits), (grown.log_prob_policy, policy)):
            total[ids] += of.log_softmax(-1).gather(1, choice[:, None])[:, 0].double()
        return choice

    while len(stream):
        types = decide(stream.type_logits(), rules and rules.types(stream), stream.ids, 0)
        if (stopped := types == stop).any():
            grown.store(stream, stopped.nonzero()[:, 0])
            going = (~stopped).nonzero()[:, 0]
            stream.keep(going)
            if not len(stream):
                break
            types = types[going]
        stream.choose_type(types)
        rows, step = torch.arange(len(stream), device=types.device), 1
        while stream.atom and len(rows):
            choice = decide(stream.bond_logits(rows), rules and rules.bonds(stream, rows), stream.ids[rows], step)
            binding = (choice > 0).nonzero()[:, 0]
            rows, choice = rows[binding], choice[binding] - 1
            stream.bind(rows, choice // 3, choice % 3 + 1)
            step += 1
        stream.finish_atom()
    return grown
