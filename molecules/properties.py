"""Properties of molecules, by RDKit."""

from __future__ import annotations

from rdkit import Chem
from rdkit.Chem import QED

PROPERTIES = {
    "logP": "octanol-water partition coefficient, log10 (Wildman and Crippen 1999)",
    "QED": "quantitative estimate of drug-likeness, 0…1 (Bickerton et al. 2012)",
    "TPSA": "topological polar surface area, Å² (Ertl et al. 2000)",
    "MW": "average molecular weight, g/mol",
}
"""The properties of a molecule, in the order in which they are stored, and their meaning."""


def properties_of(molecule: Chem.Mol) -> tuple[float, ...]:
    """Compute `PROPERTIES` of a sanitised molecule; the other three are parts of QED.

    >>> [f"{value:.2f}" for value in properties_of(Chem.MolFromSmiles("c1ccccc1O"))]
    ['1.39', '0.51', '20.23', '94.11']
    """
    parts = QED.properties(molecule)
    return parts.ALOGP, QED.qed(molecule, qedProperties=parts), parts.PSA, parts.MW
