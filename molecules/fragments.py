"""Fragments with which molecules begin."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from rdkit import Chem
from rdkit.rdBase import BlockLogs

from arflows.core.runtime.errors import UserError
from arflows.molecules.chemistry import BOND_TYPES, atom_type
from arflows.molecules.graph import Graph, permuted, walk
from arflows.molecules.representation import MoleculeSpec

ORDERS = 32
"""Number of random orders of a fragment's atoms; the likeliest under the model is used."""


class Fragment(NamedTuple):
    """A part of a molecule that is kept as it is.

    Attributes:
        graph: Its atoms and bonds.
        free: For each atom, the sum of the orders of bonds that may be added.
        attachments: For each atom the orders of its attachment points; None if bonds may be added anywhere.
    """

    graph: Graph
    free: tuple[int, ...]
    attachments: tuple[tuple[int, ...], ...] | None

    def permuted(self, permutation: list[int]) -> Fragment:
        """Return the fragment with its atoms in another order: the new atom k is the old one ``permutation[k]``."""
        points = None if self.attachments is None else tuple(self.attachments[old] for old in permutation)
        return Fragment(permuted(self.graph, permutation), tuple(self.free[old] for old in permutation), points)

    def orders(self, spec: MoleculeSpec, seed: int) -> list[Fragment]:
        """Return the fragment with its atoms in several different orders of generation."""
        rng = np.random.default_rng(seed)
        permutations = {tuple(walk(self.graph, spec.order, rng)): None for _ in range(ORDERS)}
        return [self.permuted(list(permutation)) for permutation in permutations]


def fragment_of(smiles: str, spec: MoleculeSpec) -> Fragment:
    """Reads a fragment, whose attachment points are written as ``*``, such as ``*c1ccncc1`` or ``C1CN(*)CCN1*``.

    Each ``*`` may be replaced by one bond to a later atom, of the order it is written with; no other bonds are added.
    Without any ``*`` every atom may get bonds, as far as its valence allows.

    >>> spec = MoleculeSpec(("C", "N", "O"), (4, 3, 2), max_atoms=9, max_back_bonds=2, look_back=8, order="dfs")
    >>> fragment_of("*=C1CN(*)C1", spec).attachments
    ((2,), (), (1,), ())

    Args:
        smiles: SMILES of the fragment.
        spec: The model's settings.

    Raises:
        UserError: No molecule of the model can begin like this.
    """
    with BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise UserError(f"the fragment {smiles!r} is no SMILES that RDKit can read: check it.")
    ends = [atom for atom in molecule.GetAtoms() if atom.GetAtomicNum() == 0]
    if any(atom.GetDegree() != 1 or atom.GetNeighbors()[0].GetAtomicNum() == 0 for atom in ends):
        raise UserError(f"in the fragment {smiles!r} a * must have exactly one atom beside it: correct it.")
    with BlockLogs():
        Chem.Kekulize(molecule, clearAromaticFlags=True)
    inside = [atom for atom in molecule.GetAtoms() if atom.GetAtomicNum() > 0]
    new_index = {atom.GetIdx(): k for k, atom in enumerate(inside)}
    points: list[list[int]] = [[] for _ in inside]
    bonds = []
    for bond in molecule.GetBonds():
        order = {kind: order for order, kind in BOND_TYPES.items()}.get(bond.GetBondType())
        if order is None:
            raise UserError(
                f"the fragment {smiles!r} has a {bond.GetBondType().name.lower()} bond: give it as a single, double or "
                "triple one."
            )
        i, j = (new_index.get(index) for index in (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))
        if i is not None and j is not None:
            bonds.append((max(i, j), min(i, j), order))
        else:
            points[i if i is not None else j].append(order)  # type: ignore[index]
    graph = Graph(tuple(map(atom_type, inside)), tuple(sorted(bonds)))
    if not inside or len(Chem.GetMolFrags(molecule)) > 1:
        raise UserError(f"the fragment {smiles!r} is not one connected piece: give one.")
    known = dict(zip(spec.atom_types, spec.valences, strict=True))
    if unknown := sorted(set(graph.atoms) - set(known)):
        raise UserError(f"the fragment {smiles!r} has the atom type {unknown[0]}, which the model has never seen.")
    left = [known[kind] - used for kind, used in zip(graph.atoms, graph.valences(), strict=True)]
    if min(left) < 0:
        raise UserError(f"the fragment {smiles!r} has an atom with more bonds than the model knows for its type.")
    free = [sum(each) for each in points] if ends else left
    if any(wanted > room for wanted, room in zip(free, left, strict=True)):
        raise UserError(f"the fragment {smiles!r} has a * at an atom without a free valence: move it.")
    if len(graph.atoms) >= spec.max_atoms or not any(free):
        why = "no atom with a free valence" if len(graph.atoms) < spec.max_atoms else "as many atoms as a molecule may"
        raise UserError(f"the fragment {smiles!r} has {why}: nothing can be added.")
    return Fragment(graph, tuple(free), tuple(map(tuple, points)) if ends else None)
