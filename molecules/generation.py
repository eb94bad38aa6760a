"""Generation: all decisions of a batch of molecules, one after the other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float64, Int64, UInt8
from torch import Tensor

from arflows.core.bijections import PiecewiseLinearCDF
from arflows.core.runtime.machine import widest_float
from arflows.molecules.decisions import pack, unpack
from arflows.molecules.representation import MoleculeSpec
from arflows.molecules.stream import MoleculeStream

WASTE = 0.8
"""Finished molecules are dropped from the batch once at most this share is unfinished: dropping copies it."""


class Rules(Protocol):
    """Rules for decisions; see `arflows.molecules.validity.Masks`."""

    def types(self, stream: MoleculeStream, rows: Int64[Tensor, " rows"]) -> Bool[Tensor, "rows types"]:
        """Types that the next atom of some of the molecules may have; the last entry is to stop."""

    def bonds(self, stream: MoleculeStream, rows: Int64[Tensor, " rows"]) -> Bool[Tensor, "rows choices"]:
        """Bonds that the next atom of some of the molecules may have; the first entry is to have no more."""


class Source(Protocol):
    """A source of decisions."""

    def decide(
        self, logits: Float64[Tensor, "rows choices"], ids: Int64[Tensor, " rows"], atom: int, step: int
    ) -> Int64[Tensor, " rows"]:
        """Make a decision for some of the molecules.

        Args:
            logits: Of the choices.
            ids: Indices of the molecules.
            atom: Index of the atom.
            step: Number of the decision on it: its type at 0, its bonds from 1 on.
        """


class FromLatents:
    """Decisions at points of the unit cube: the inverse of the decisions' CDFs.

    Args:
        latents: A number for each possible decision, see `latent_shape`.
    """

    def __init__(self, latents: Float64[Tensor, "batch atoms steps"]) -> None:
        self.latents = latents

    def decide(self, logits: Tensor, ids: Tensor, atom: int, step: int) -> Tensor:
        """Return the category in whose bin the latent falls."""
        return cdf(logits.shape[1]).inverse(self.latents[ids, atom, step].to(logits.dtype), logits)[0].long()


class Known:
    """Decisions of known molecules; records their latents, the middles of their bins.

    Args:
        packed: The molecules.
        spec: Their settings.

    Attributes:
        latents: See `latent_shape`; NaN where a molecule has no decision.
    """

    def __init__(self, packed: UInt8[Tensor, "batch packed"], spec: MoleculeSpec) -> None:
        atoms, bonds = (part.long() for part in unpack(packed, spec.max_atoms))
        batch, size = atoms.shape
        stop = len(spec.atom_types)
        types = torch.where(atoms > 0, atoms - 1, stop)
        self.types = torch.cat([types, torch.full_like(types[:, :1], stop)], 1)
        self.latents = torch.full(
            (batch, *latent_shape(spec)), torch.nan, dtype=widest_float(packed.device), device=packed.device
        )
        # Decisions on an atom's bonds in their order, then zeros: no more bonds.
        self.choices = atoms.new_zeros(batch, size, spec.max_back_bonds + 1)
        later, earlier, order = bonds.unbind(-1)
        molecule, row = (order > 0).nonzero(as_tuple=True)
        i, j = later[molecule, row], earlier[molecule, row]
        key = (molecule * size + i) * size + (size - 1 - j if spec.order == "dfs" else j)
        by_key = key.argsort()
        molecule, i, j, order = molecule[by_key], i[by_key], j[by_key], order[molecule, row][by_key]
        owner = molecule * size + i
        starts = torch.searchsorted(owner, owner)
        self.choices[molecule, i, torch.arange(len(i), device=i.device) - starts] = 3 * j + order

    def decide(self, logits: Tensor, ids: Tensor, atom: int, step: int) -> Tensor:
        """Return the decisions of the known molecules."""
        choice = self.types[ids, atom] if step == 0 else self.choices[ids, atom, step - 1]
        self.latents[ids, atom, step] = cdf(logits.shape[1])(choice + 0.5, logits)[0]
        return choice


@dataclass(frozen=True)
class Begun:
    """Source of known decisions for the first atoms, and of another source's for the rest.

    Attributes:
        beginning: One molecule, whose decisions are used for all.
        atoms: Number of its atoms.
        rest: Source of later decisions.
    """

    beginning: Known
    atoms: int
    rest: Source

    def decide(self, logits: Tensor, ids: Tensor, atom: int, step: int) -> Tensor:
        """Return the decision of the source that is responsible for the atom."""
        if atom < self.atoms:
            return self.beginning.decide(logits, torch.zeros_like(ids), atom, step)
        return self.rest.decide(logits, ids, atom, step)


@dataclass(frozen=True)
class Grown:
    """Generated molecules.

    Attributes:
        atoms: Index of the type plus 1; 0 for none.
        orders: Of the bonds.
        log_prob: Log-probability under the model, in nats.
        log_prob_policy: The same under the policy, with its rules and temperature; known decisions do not count.
    """

    atoms: UInt8[Tensor, "batch atoms"]
    orders: UInt8[Tensor, "batch atoms atoms"]
    log_prob: Float64[Tensor, " batch"]
    log_prob_policy: Float64[Tensor, " batch"]

    @property
    def bonds(self) -> UInt8[Tensor, "batch bonds 3"]:
        """The bonds in the form of a store."""
        molecule, i, j = self.orders.tril(-1).nonzero(as_tuple=True)
        slot = torch.arange(len(molecule), device=molecule.device) - torch.searchsorted(molecule, molecule)
        most = int(slot.max()) + 1 if len(slot) else 0
        bonds = self.orders.new_zeros(len(self.orders), most, 3)
        bonds[molecule, slot] = torch.stack([i, j, self.orders[molecule, i, j]], -1).to(torch.uint8)
        return bonds

    @property
    def packed(self) -> UInt8[Tensor, "batch packed"]:
        """Atoms and bonds in one tensor."""
        return pack(self.atoms, self.bonds)


def latent_shape(spec: MoleculeSpec) -> tuple[int, int]:
    """Decisions that a molecule can have: type and bonds of each atom, and the decision to stop after the last."""
    return spec.max_atoms + 1, spec.max_back_bonds + 2


@functools.cache
def cdf(categories: int) -> PiecewiseLinearCDF:
    """The map of one decision, with category k at [k, k + 1)."""
    return PiecewiseLinearCDF(categories, categories)


@torch.no_grad()
def grow(
    stream: MoleculeStream, source: Source, rules: Rules | None = None, temperature: float = 1.0, begun: int = 0
) -> Grown:
    """Make all decisions of a batch of molecules.

    Args:
        stream: A stream at its beginning; it is used up.
        source: Source of the decisions.
        rules: Decisions that are allowed; None for all that the representation has.
        temperature: Divides the logits; below 1 for likelier molecules.
        begun: Atoms whose decisions are known, so that rules and temperature do not matter for them.
    """
    batch, size = stream.types.shape
    stop = len(stream.spec.atom_types)
    atoms = torch.zeros(batch, size, dtype=torch.uint8, device=stream.ids.device)
    orders = torch.zeros_like(stream.orders)
    log_prob = torch.zeros(batch, dtype=widest_float(stream.ids.device), device=stream.ids.device)
    log_prob_policy = torch.zeros_like(log_prob)

    def decide(logits: Tensor, rows: Tensor, step: int) -> Tensor:
        ids = stream.ids[rows]
        logits = logits.to(log_prob.dtype)  # the bin of a rare decision may contain no float32 number
        policy = logits
        drawn = stream.atom >= begun
        if rules is not None and drawn:
            allowed = rules.bonds(stream, rows) if step else rules.types(stream, rows)
            policy = logits.masked_fill(~allowed, -torch.inf)
        if temperature != 1 and drawn:
            policy = policy / temperature
        choice = source.decide(policy, ids, stream.atom, step)
        log_prob[ids] += _log_probability(logits, choice)
        if drawn:
            log_prob_policy[ids] += _log_probability(policy, choice)
        return choice

    alive = torch.arange(batch, device=stream.ids.device)
    while True:
        types = decide(stream.type_logits(alive), alive, 0)
        going = types != stop
        stopped = alive[~going]
        kinds, ids = stream.types[stopped], stream.ids[stopped]
        atoms[ids] = torch.where(kinds == stop, 0, kinds + 1).to(torch.uint8)
        orders[ids] = stream.orders[stopped]
        alive, types = alive[going], types[going]
        if not len(alive):
            return Grown(atoms, orders, log_prob, log_prob_policy)
        if len(alive) < WASTE * len(stream):
            stream.keep(alive)
            alive = torch.arange(len(alive), device=alive.device)
        stream.choose_type(alive, types)
        bind_atom(stream, alive, decide)


def bind_atom(
    stream: MoleculeStream, rows: Int64[Tensor, " rows"], decide: Callable[[Tensor, Tensor, int], Tensor]
) -> None:
    """Make the decisions on the bonds of the next atom, whose type is chosen, and finish it.

    Args:
        stream: The molecules.
        rows: Those that have this atom.
        decide: Returns choices, given their logits, the rows that they belong to, and their number from 1 on.
    """
    rows, step = rows if stream.atom else rows[:0], 1
    while len(rows):
        choice = decide(stream.bond_logits(rows), rows, step)
        binding = (choice > 0).nonzero()[:, 0]
        rows, bond = rows[binding], choice[binding] - 1
        stream.bind(rows, bond // 3, bond % 3 + 1)
        step += 1
    stream.finish_atom()


def _log_probability(
    logits: Float64[Tensor, "rows choices"], choice: Int64[Tensor, " rows"]
) -> Float64[Tensor, " rows"]:
    return logits.log_softmax(-1).gather(1, choice[:, None])[:, 0]
