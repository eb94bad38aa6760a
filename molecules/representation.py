"""Molecular graphs as arrays, and the settings that a store of molecules and a model share."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import UInt8

from arflows.core.runtime.errors import UserError
from arflows.data.spec import Spec
from arflows.molecules.chemistry import largest_valence
from arflows.molecules.graph import Graph, Order


@dataclass(frozen=True)
class MoleculeSpec(Spec):
    """The settings that data and model must share; all but the order are measured on the training data.

    >>> from arflows.molecules.chemistry import graph_of
    >>> spec = MoleculeSpec.measure([graph_of(smiles, "dfs") for smiles in ("CCO", "c1ccncc1")], "dfs")
    >>> spec.atom_types, spec.valences, spec.max_atoms, spec.max_back_bonds
    (('C', 'N', 'O'), (3, 3, 1), 6, 2)
    >>> spec.objection(graph_of("CCBr", "dfs"))
    'the atom type Br does not occur in the training data'

    Attributes:
        atom_types: Element and formal charge, such as ``("C", "O", "N", "N+", "O-")``, the most frequent first.
        valences: For each type the largest sum of the orders of an atom's bonds, at most what RDKit allows.
        max_atoms: The most atoms of a molecule.
        max_back_bonds: The most bonds of an atom to earlier ones; all but one of them close rings.
        look_back: The longest reach of a bond back to an earlier atom, in atoms.
        order: Order of generation.
    """

    atom_types: tuple[str, ...]
    valences: tuple[int, ...]
    max_atoms: int
    max_back_bonds: int
    look_back: int
    order: Order

    def __post_init__(self) -> None:
        # JSON knows lists only.
        object.__setattr__(self, "atom_types", tuple(self.atom_types))
        object.__setattr__(self, "valences", tuple(self.valences))

    def as_dict(self) -> dict[str, Any]:
        """Return the settings in a form for JSON."""
        return super().as_dict() | {"atom_types": list(self.atom_types), "valences": list(self.valences)}

    @classmethod
    def measure(cls, graphs: Iterable[Graph], order: Order) -> Self:
        """Measure the settings on training data.

        Args:
            graphs: Molecules, their atoms in the given order.
            order: That order.
        """
        counts: Counter[str] = Counter()
        valences: dict[str, int] = {}
        atoms = back = look_back = 0
        for graph in graphs:
            counts.update(graph.atoms)
            atoms = max(atoms, len(graph.atoms))
            for kind, valence in zip(graph.atoms, graph.valences(), strict=True):
                valences[kind] = max(valence, valences.get(kind, 0))
            if graph.bonds:
                look_back = max(look_back, max(i - j for i, j, _ in graph.bonds))
                back = max(back, *Counter(i for i, _, _ in graph.bonds).values())
        types = sorted(counts, key=lambda kind: (-counts[kind], kind))
        limits = [min(valences[kind], largest_valence(kind)) for kind in types]
        return cls(tuple(types), tuple(limits), atoms, back, look_back, order)

    def lacks(self, other: MoleculeSpec) -> str | None:
        """Say what molecules of other settings may have that these do not cover; None if they cover all of them."""
        if self.order != other.order:
            return f"its atoms are in the order {other.order}, those of the model in {self.order}"
        limits = dict(zip(self.atom_types, self.valences, strict=True))
        if unseen := [kind for kind in other.atom_types if kind not in limits]:
            return f"the model does not know the atom type {unseen[0]}"
        for kind, valence in zip(other.atom_types, other.valences, strict=True):
            if valence > limits[kind]:
                return f"atoms {kind} have bonds of up to {valence}, more than the {limits[kind]} that the model knows"
        for name in ("max_atoms", "max_back_bonds", "look_back"):
            if getattr(other, name) > getattr(self, name):
                return f"{name} is {getattr(other, name)}, more than the {getattr(self, name)} that the model knows"
        return None

    def relaxed(self) -> Self:
        """Return the settings without the limits that a flow's decisions do not have: valences and reach of bonds."""
        return dataclasses.replace(self, valences=(255,) * len(self.valences), look_back=self.max_atoms)

    def objection(self, graph: Graph) -> str | None:
        """Return the reason why the settings do not cover a molecule; None if they do."""
        if unseen := sorted(set(graph.atoms) - set(self.atom_types)):
            return f"the atom type {unseen[0]} does not occur in the training data"
        if len(graph.atoms) > self.max_atoms:
            return f"more than {self.max_atoms} heavy atoms, the most in the training data"
        limits = dict(zip(self.atom_types, self.valences, strict=True))
        for kind, valence in zip(graph.atoms, graph.valences(), strict=True):
            if valence > limits[kind]:
                return f"an atom {kind} with bonds of {valence}, more than the {limits[kind]} in the training data"
        if any(i - j > self.look_back for i, j, _ in graph.bonds):
            return f"a bond reaches back more than {self.look_back} atoms, the most in the training data"
        if graph.bonds and max(Counter(i for i, _, _ in graph.bonds).values()) > self.max_back_bonds:
            return f"an atom has more than {self.max_back_bonds} bonds to earlier ones, the most in the training data"
        return None


def encode(
    graphs: Sequence[Graph], spec: MoleculeSpec, max_bonds: int | None = None
) -> tuple[UInt8[np.ndarray, "molecules atoms"], UInt8[np.ndarray, "molecules bonds 3"]]:
    """Write graphs as arrays.

    Args:
        graphs: Molecules, in the order of the spec.
        spec: The settings.
        max_bonds: Rows for bonds; without it as many as the largest molecule has.

    Returns:
        The atoms: index of the type plus 1, 0 is padding; and the bonds, padded with rows of zeros.

    Raises:
        UserError: The settings do not cover a molecule.
    """
    index = {kind: k + 1 for k, kind in enumerate(spec.atom_types)}
    most = max((len(graph.bonds) for graph in graphs), default=0)
    atoms = np.zeros((len(graphs), spec.max_atoms), np.uint8)
    bonds = np.zeros((len(graphs), most if max_bonds is None else max_bonds, 3), np.uint8)
    for row, graph in enumerate(graphs):
        if objection := spec.objection(graph):
            raise UserError(f"a molecule cannot be represented: {objection}.")
        atoms[row, : len(graph.atoms)] = [index[kind] for kind in graph.atoms]
        if graph.bonds:
            bonds[row, : len(graph.bonds)] = graph.bonds
    return atoms, bonds


def decode(
    atoms: UInt8[np.ndarray, "molecules atoms"], bonds: UInt8[np.ndarray, "molecules bonds 3"], spec: MoleculeSpec
) -> list[Graph]:
    """Read graphs from arrays, as `encode` writes them.

    Args:
        atoms: Index of the type of each atom plus 1; 0 is padding.
        bonds: Later atom, earlier atom and order of each bond; rows of zeros are padding.
        spec: The settings.
    """
    names = ("", *spec.atom_types)
    counts = (atoms > 0).sum(1).tolist()
    sizes = (bonds[:, :, 2] > 0).sum(1).tolist()
    return [
        Graph(tuple(names[kind] for kind in row[:count]), tuple(map(tuple, edges[:size])))
        for row, count, edges, size in zip(atoms.tolist(), counts, bonds.tolist(), sizes, strict=True)
    ]
