"""A molecule as one sequence of decisions, and the graph in which each is made.

Atoms come in the order of generation. Of each, the first decision is its type, or to stop; then, for all but the first,
come decisions to bind it to an earlier atom by a single, double or triple bond, until one says that it has its bonds.
Its parent in the breadth- or depth-first order comes first, then the atoms with which it closes rings: from the
earliest to the latest atom in breadth-first orders, from the latest to the earliest in depth-first ones. So every
molecule in an order is exactly one sequence, of about three decisions an atom.

Decisions are integers. Of a type it is the index of the type, the number of types meaning STOP; of a bond it is 0 for
"no more", else 1 + 3 j + (order − 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from arflows.molecules.graph import Graph
from arflows.molecules.representation import MoleculeSpec, encode

FAR = 12
"""The largest distance: longer ones, and those of atoms without a path between them, count as this one."""
NEARNESS = 2 * (FAR + 1)
"""Kinds of nearness of an atom to the one that is being bound, see `Decisions.nearness`."""


class Decisions(NamedTuple):
    """The decisions of a batch of molecules, and the graphs that each is made in.

    The *rows* are the decisions on bonds, padded to the molecule with the most of them. Graphs are prefixes: "after
    atom i" is the graph of the atoms up to i and of the bonds between them.

    Attributes:
        types: Of atoms; the number of types for padding.
        sizes: Number of atoms.
        row_atom: The atom that is being bound; 0 for padding.
        row_choice: The decision.
        row_real: True for rows that are decisions, False for padding.
        row_before: True for earlier rows of the same atom: the decisions so far.
        distances: From each atom to each, in bonds, after atom i (first axis); at most `FAR`.
        orders: Orders of bonds, 0 for none.
        used: The sum of the orders of the bonds of atom j after atom i (first axis).
        nearness: For the first bond of an atom, the distance of each candidate from the atom before; for others, which
            close rings, `FAR` + 1 and the distance from the nearest atom that is already bound to it.
        allowed: True for candidates that the order of decisions permits.
    """

    types: Int64[Tensor, "batch atoms"]
    sizes: Int64[Tensor, " batch"]
    row_atom: Int64[Tensor, "batch rows"]
    row_choice: Int64[Tensor, "batch rows"]
    row_real: Bool[Tensor, "batch rows"]
    row_before: Bool[Tensor, "batch rows rows"]
    distances: UInt8[Tensor, "batch atoms atoms atoms"]
    orders: UInt8[Tensor, "batch atoms atoms"]
    used: UInt8[Tensor, "batch atoms atoms"]
    nearness: UInt8[Tensor, "batch rows atoms"]
    allowed: Bool[Tensor, "batch rows atoms"]

    @property
    def row_partner(self) -> Int64[Tensor, "batch rows"]:
        """The earlier atom that was chosen; 0 where none was."""
        return (self.row_choice - 1).clamp_min(0) // 3

    @property
    def row_order(self) -> Int64[Tensor, "batch rows"]:
        """The order of the bond; 0 where none was chosen."""
        return torch.where(self.row_choice > 0, (self.row_choice - 1) % 3 + 1, 0)


def pack(atoms: UInt8[Tensor, "batch atoms"], bonds: UInt8[Tensor, "batch bonds 3"]) -> UInt8[Tensor, "batch packed"]:
    """Join atoms and bonds, as a store has them, in one tensor."""
    return torch.cat([atoms, bonds.flatten(1)], 1)


def unpack(
    packed: UInt8[Tensor, "batch packed"], max_atoms: int
) -> tuple[UInt8[Tensor, "batch atoms"], UInt8[Tensor, "batch bonds 3"]]:
    """Split a tensor made by `pack` into atoms and bonds."""
    return packed[:, :max_atoms], packed[:, max_atoms:].unflatten(1, (-1, 3))


def packed(graphs: Sequence[Graph], spec: MoleculeSpec) -> UInt8[Tensor, "batch packed"]:
    """Graphs in any order of their atoms, packed.

    Raises:
        UserError: A graph has no decisions: an unknown atom type, too many atoms, or too many bonds of an atom.
    """
    atoms, bonds = encode(graphs, spec.relaxed())
    return pack(torch.from_numpy(atoms), torch.from_numpy(bonds))


@torch.no_grad()
def decisions(
    packed: UInt8[Tensor, "batch packed"], max_atoms: int, types: int, max_back_bonds: int, latest_first: bool
) -> Decisions:
    """Convert molecules to decisions, padded to the largest of them.

    Args:
        packed: The molecules, as `pack` makes them.
        max_atoms: The most atoms of a molecule in this format.
        types: Number of types.
        max_back_bonds: The most bonds of an atom to earlier ones.
        latest_first: The order of an atom's bonds.
    """
    atoms, bonds = (part.long() for part in unpack(packed, max_atoms))
    batch, device = len(packed), packed.device
    sizes = (atoms > 0).sum(1)
    size = max(int(sizes.max()), 1)
    atoms = atoms[:, :size]
    bond_counts = (bonds[..., 2] > 0).sum(1)
    bonds = bonds[:, : max(int(bond_counts.max()), 1)]
    real_bond = bonds[..., 2] > 0
    later, earlier, order = bonds.unbind(-1)
    key = torch.where(real_bond, later * 256 + (255 - earlier if latest_first else earlier), 1 << 20)
    later, earlier, order = (part.gather(1, key.argsort(1)) for part in (later, earlier, order))
    real_bond = order > 0

    # The decisions on an atom's bonds are followed by one that ends them: i − 1 ends come before the bonds of atom i.
    count = int((bond_counts + sizes).max()) - 1 if size > 1 else 1
    column = torch.arange(bonds.shape[1], device=device) + later - 1
    row_choice = torch.zeros(batch, count + 1, dtype=torch.long, device=device)
    row_choice.scatter_(1, torch.where(real_bond, column, count), torch.where(real_bond, 3 * earlier + order, 0))
    row_choice = row_choice[:, :count]
    rows = torch.arange(count, device=device)
    row_real = rows < (bond_counts + sizes - 1)[:, None]
    ends = (row_choice == 0) & row_real
    row_atom = torch.where(row_real, 1 + ends.cumsum(1) - ends.long(), 0)

    orders = torch.zeros(batch, size, size, dtype=torch.uint8, device=device)
    molecule = torch.arange(batch, device=device)[:, None].expand_as(later)[real_bond]
    i, j, o = later[real_bond], earlier[real_bond], order[real_bond].to(torch.uint8)
    orders[molecule, i, j] = o
    orders[molecule, j, i] = o
    distances = prefix_distances(orders)

    before = (row_atom[:, :, None] == row_atom[:, None]) & (rows[:, None] > rows) & row_real[:, :, None]
    partner = (row_choice - 1).clamp_min(0) // 3
    every = torch.arange(batch, device=device)[:, None]
    last = (row_atom - 1).clamp_min(0)
    from_partner = distances[every, last, partner]
    nearest = torch.full_like(from_partner, FAR)
    candidates = torch.arange(size, device=device)
    allowed = candidates < row_atom[..., None]
    for back in range(1, min(max_back_bonds, count - 1) + 1):
        same = before.diagonal(-back, 1, 2)
        nearest[:, back:] = torch.where(
            same[..., None], nearest[:, back:].minimum(from_partner[:, :-back]), nearest[:, back:]
        )
        passed = partner[:, :-back, None]
        beyond = candidates < passed if latest_first else candidates > passed
        allowed[:, back:] &= beyond | ~same[..., None]
    first = ~before.any(2, keepdim=True)
    nearness = torch.where(first, distances[every, last, last], nearest + (FAR + 1))
    allowed &= before.sum(2, keepdim=True) < max_back_bonds
    return Decisions(
        types=torch.where(atoms > 0, atoms - 1, types),
        sizes=sizes,
        row_atom=row_atom,
        row_choice=row_choice,
        row_real=row_real,
        row_before=before,
        distances=distances,
        orders=orders,
        used=orders.cumsum(1, dtype=torch.uint8),
        nearness=nearness,
        allowed=allowed,
    )


def prefix_distances(orders: UInt8[Tensor, "batch atoms atoms"]) -> UInt8[Tensor, "batch atoms atoms atoms"]:
    """Distances between all atoms, in bonds, after each atom (first axis); at most `FAR`."""
    batch, size, _ = orders.shape
    found = orders.new_empty(batch, size, size, size)
    distances = orders.new_full((batch, size, size), FAR)
    for atom in range(size):
        add_atom(distances, orders[:, atom, :atom] > 0)
        found[:, atom] = distances
    return found


def add_atom(distances: UInt8[Tensor, "batch atoms atoms"], bound: Bool[Tensor, "batch earlier"]) -> None:
    """Update distances for a new atom, in place.

    Args:
        distances: Between the atoms, with room for the new one.
        bound: True for the earlier atoms that the new one is bound to; it comes after them.
    """
    atom = bound.shape[1]
    known = distances[:, :atom, :atom]
    if atom:
        steps = torch.where(bound[..., None], known, FAR).amin(1).add_(1).clamp_max_(FAR)
        torch.minimum(known, steps[:, :, None] + steps[:, None], out=known)
        distances[:, atom, :atom] = steps
        distances[:, :atom, atom] = steps
    distances[:, atom, atom] = 0
