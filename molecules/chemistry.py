"""Conversion between RDKit's molecules and graphs: parsing, sanitising, and reasons for refusal.

A graph has heavy atoms and bonds in an order of generation. Aromatic rings are kekulised, so that bonds are single,
double or triple; hydrogens are implicit, as many as RDKit gives an atom of this element, charge and bonds;
stereochemistry is dropped. RDKit's sanitisation restores the molecule from such a graph, aromaticity and hydrogens
included. `graph_of` refuses molecules that would not be restored, with the reason.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rdkit import Chem
from rdkit.Chem.rdMolDescriptors import CalcExactMolWt
from rdkit.rdBase import BlockLogs

from arflows.core.runtime.errors import UserError
from arflows.molecules.graph import Graph, Order, reorder, sorted_bonds
from arflows.molecules.workers import Workers, chunked

BOND_TYPES = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
_REPRESENTED = frozenset({*BOND_TYPES.values(), Chem.BondType.AROMATIC})
ROUNDS = 3
"""Maximum number of rewrites of canonical SMILES until they no longer change; nearly all are stable at once."""

LONGEST_SMILES = 5_000
"""Characters. RDKit's work grows with the square of a molecule's size: a line of a megabyte would take
hours, while molecules of 255 atoms need fewer than two thousand characters."""

LONGEST_BLOCK = 200_000
"""Characters of a mol block, of which an atom or a bond takes up to seventy."""

MOST_AUTOMORPHISMS = 1_000_000
"""The most symmetries of a molecule over whose orders probabilities are summed."""

ELEMENTS = frozenset({"B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Ge", "As", "Se", "Br", "Te", "I"})
"""Elements with valences, which determine the number of hydrogens; metals and noble gases have none."""


class Refused(ValueError):
    """A molecule has no graph of this kind; the message is the reason, worded alike for all such molecules."""


def atom_type(atom: Chem.Atom) -> str:
    """Return an atom's type: its element and formal charge, as ``N``, ``N+`` or ``C-2``."""
    charge = atom.GetFormalCharge()
    sign = "+" if charge > 0 else "-" if charge < 0 else ""
    return atom.GetSymbol() + sign + (str(abs(charge)) if abs(charge) > 1 else "")


@functools.cache
def element_and_charge(kind: str) -> tuple[int, int]:
    """Return the atomic number and formal charge of a type."""
    for sign, factor in (("+", 1), ("-", -1)):
        if sign in kind:
            element, size = kind.split(sign)
            return _atomic_number(element), factor * int(size or 1)
    return _atomic_number(kind), 0


def _atomic_number(element: str) -> int:
    return Chem.GetPeriodicTable().GetAtomicNumber(element)


@functools.cache
def largest_valence(kind: str) -> int:
    """Return the largest sum of bond orders that RDKit allows an atom of this type."""
    number, charge = element_and_charge(kind)
    with BlockLogs():
        return max(valence for valence in range(9) if _allowed(number, charge, valence))


def _allowed(number: int, charge: int, valence: int) -> bool:
    molecule = Chem.RWMol()
    center = Chem.Atom(number)
    center.SetFormalCharge(charge)
    molecule.AddAtom(center)
    for index in range(valence):
        molecule.AddAtom(Chem.Atom(6))
        molecule.AddBond(0, index + 1, Chem.BondType.SINGLE)
    return Chem.SanitizeMol(molecule, catchErrors=True) == Chem.SanitizeFlags.SANITIZE_NONE


def parse(smiles: str) -> Chem.Mol:
    """Read SMILES.

    Raises:
        Refused: The SMILES cannot be read, or are not a molecule.
    """
    return _sane(_quietly(Chem.MolFromSmiles, smiles, LONGEST_SMILES), "SMILES", mapped=":" in smiles)


def cleaned(molecule: Chem.Mol) -> Chem.Mol:
    """Return a copy of a molecule, sanitised and without explicit hydrogens and atom-map numbers.

    Raises:
        Refused: It is not a possible molecule.
    """
    return _sane(Chem.Mol(molecule), "a molecule")


def parse_block(block: str) -> Chem.Mol:
    """Read a mol block, the form of molecules in SD files.

    Raises:
        Refused: The block cannot be read, or is not a molecule.
    """
    return _sane(_quietly(Chem.MolFromMolBlock, block, LONGEST_BLOCK), "a mol block")


def _quietly(reader: Any, text: str, longest: int) -> Chem.Mol | None:
    if len(text) > longest:
        raise Refused(f"longer than {longest:,} characters")
    with BlockLogs():
        return reader(text, sanitize=False)


def _sane(molecule: Chem.Mol | None, form: str, mapped: bool = True) -> Chem.Mol:
    if molecule is None:
        raise Refused(f"not {form} that RDKit can parse")
    if not molecule.GetNumAtoms():
        raise Refused("no atoms")
    with BlockLogs():
        failed = Chem.SanitizeMol(molecule, catchErrors=True)
        if failed == Chem.SanitizeFlags.SANITIZE_PROPERTIES:
            raise Refused("an atom with more bonds than its valence allows")
        if failed != Chem.SanitizeFlags.SANITIZE_NONE:
            raise Refused("an aromatic system that cannot be kekulised")
        if molecule.GetNumHeavyAtoms() < molecule.GetNumAtoms():
            parameters = Chem.RemoveHsParameters()
            parameters.removeDefiningBondStereo = True  # type: ignore[assignment]  # the H of an imine marks E or Z
            molecule = Chem.RemoveHs(molecule, parameters)
    if mapped:
        for atom in molecule.GetAtoms():
            atom.SetAtomMapNum(0)
    return molecule


def largest_part(molecule: Chem.Mol) -> Chem.Mol:
    """Return the part of a salt or mixture with the most heavy atoms, of equal ones the heaviest."""
    parts = Chem.GetMolFrags(molecule, asMols=True)
    return max(parts, key=lambda part: (part.GetNumHeavyAtoms(), CalcExactMolWt(part)))


def flat_smiles(molecule: Chem.Mol) -> str:
    """Return canonical SMILES without stereochemistry."""
    return Chem.MolToSmiles(molecule, isomericSmiles=False)


def canonical_smiles(smiles: str) -> str:
    """Return the canonical SMILES without stereochemistry of a molecule that SMILES describe.

    Raises:
        Refused: The SMILES cannot be read.
    """
    return _settled(parse(smiles))


def has_stereochemistry(molecule: Chem.Mol) -> bool:
    """Return True if `graph_of` drops a stereo centre or the geometry of a double bond."""
    drawn = Chem.BondDir.BEGINWEDGE, Chem.BondDir.BEGINDASH, Chem.BondDir.ENDUPRIGHT, Chem.BondDir.ENDDOWNRIGHT
    return any(atom.GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED for atom in molecule.GetAtoms()) or any(
        bond.GetBondDir() in drawn or bond.GetStereo() > Chem.BondStereo.STEREOANY for bond in molecule.GetBonds()
    )


def graph_of(molecule: Chem.Mol | str, order: Order = "bfs") -> Graph:
    """Return a molecule's graph in the canonical order, which does not depend on how the molecule was written.

    Canonical SMILES are depth first: their atoms, in the order in which they are written, are the canonical order
    ``dfs``. ``bfs`` begins with their first atom and goes to its neighbours in their order.

    >>> graph_of("OC=C")
    Graph(atoms=('C', 'C', 'O'), bonds=((1, 0, 2), (2, 1, 1)))

    Args:
        molecule: A sanitised molecule, or SMILES.
        order: Breadth or depth first.

    Raises:
        Refused: The molecule has no such graph; the message is the reason.
    """
    return graph_and_smiles(molecule, order)[0]


def graph_and_smiles(molecule: Chem.Mol | str, order: Order = "bfs") -> tuple[Graph, str]:
    """Return a molecule's graph as `graph_of`, and its canonical flat SMILES, which the graph gives back."""
    if isinstance(molecule, str):
        molecule = parse(molecule)
    _refuse_unusual(molecule)
    smiles = flat_smiles(molecule)
    for _ in range(ROUNDS):
        canonical = _read_back(smiles)
        graph = _kekulized(canonical)
        back = mol_of(graph)
        if back is None:
            break
        settled = flat_smiles(back)
        if settled == smiles:
            return (graph if order == "dfs" else reorder(graph, order)), smiles
        if settled != flat_smiles(_read_back(smiles)):
            break
        smiles = settled
    raise Refused("hydrogens or charges that do not follow from atoms and bonds")


def _kekulized(molecule: Chem.Mol) -> Graph:
    """Return a molecule's graph with its atoms as they are; the molecule is kekulised in place."""
    Chem.Kekulize(molecule, clearAromaticFlags=True)
    return Graph(
        tuple(map(atom_type, molecule.GetAtoms())),
        sorted_bonds(
            (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), int(bond.GetBondTypeAsDouble()))
            for bond in molecule.GetBonds()
        ),
    )


def _refuse_unusual(molecule: Chem.Mol) -> None:
    """Raise `Refused` for a molecule that a graph cannot represent."""
    if not molecule.GetNumAtoms():
        raise Refused("no atoms")
    if len(Chem.GetMolFrags(molecule)) > 1:
        raise Refused("several parts: a salt or mixture")
    for atom in molecule.GetAtoms():
        if atom.GetIsotope():
            raise Refused("an isotope")
        if (symbol := atom.GetSymbol()) not in ELEMENTS:
            what = {"*": "a dummy atom", "H": "a hydrogen that is no substituent of a heavy atom"}
            raise Refused(what.get(symbol, f"the element {symbol} has no fixed valence"))
        if atom.GetNumRadicalElectrons():
            raise Refused("a radical")
    for bond in molecule.GetBonds():
        if (kind := bond.GetBondType()) not in _REPRESENTED:
            raise Refused(f"a {kind.name.lower()} bond")


def _settled(molecule: Chem.Mol) -> str:
    """Canonical flat SMILES that stay the same when read and written again.

    RDKit's canonical SMILES take a second round to settle for a few molecules, since aromaticity and ties between
    atoms are perceived again without stereochemistry.
    """
    smiles = flat_smiles(molecule)
    for _ in range(ROUNDS):
        again = _read_back(smiles)
        if (settled := flat_smiles(again)) == smiles:
            break
        smiles = settled
    return smiles


def _read_back(smiles: str) -> Chem.Mol:
    with BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise Refused("canonical SMILES that RDKit cannot read back")
    return molecule


def mol_of(graph: Graph) -> Chem.Mol | None:
    """Return the molecule of a graph, sanitised: with aromaticity and hydrogens. None if RDKit finds it impossible."""
    molecule = unsanitized(graph)
    with BlockLogs():
        return molecule if Chem.SanitizeMol(molecule, catchErrors=True) == Chem.SanitizeFlags.SANITIZE_NONE else None


def smiles_of(graph: Graph) -> str | None:
    """Return a graph's canonical SMILES, those that `canonical_smiles` gives; None if RDKit finds it impossible."""
    molecule = mol_of(graph)
    return None if molecule is None else _settled(molecule)


def smiles_of_all(graphs: Iterable[Graph], workers: Workers) -> list[str | None]:
    """Return `smiles_of` each graph, several at a time."""
    return [smiles for chunk in workers.map(_smiles_of_chunk, chunked(graphs)) for smiles in chunk]


def _smiles_of_chunk(graphs: Sequence[Graph]) -> list[str | None]:
    with BlockLogs():
        return [smiles_of(graph) for graph in graphs]


def unsanitized(graph: Graph) -> Chem.RWMol:
    """Return a graph as RDKit's, without a check whether it can be."""
    molecule = Chem.RWMol()
    for kind in graph.atoms:
        number, charge = element_and_charge(kind)
        atom = Chem.Atom(number)
        atom.SetFormalCharge(charge)
        molecule.AddAtom(atom)
    for i, j, order in graph.bonds:
        molecule.AddBond(j, i, BOND_TYPES[order])
    return molecule


def automorphisms(graph: Graph) -> np.ndarray:
    """Return the permutations of atoms that leave a graph as it is, (permutations, atoms).

    Raises:
        UserError: There are more than `MOST_AUTOMORPHISMS`.
    """
    molecule = unsanitized(graph)
    for atom in molecule.GetAtoms():  # so that only atoms of equal type match, charges included
        atom.SetIsotope(1 + (atom.GetFormalCharge() + 8))
    found = molecule.GetSubstructMatches(molecule, uniquify=False, maxMatches=MOST_AUTOMORPHISMS + 1)
    if len(found) > MOST_AUTOMORPHISMS:
        raise UserError(f"a molecule has more than {MOST_AUTOMORPHISMS:,} symmetries: leave it out of --orders.")
    return np.array(found, np.int16)
