"""Cases of the bijections of molecules, see tests/core/bijection_cases.py."""

from dataclasses import dataclass

import torch
from torch import Tensor

from arflows.core.bijections import Bijection
from arflows.molecules.bijection import DecisionCDFs
from arflows.molecules.chemistry import graph_of
from arflows.molecules.conditioner import GraphTransformer
from arflows.molecules.decisions import pack
from arflows.molecules.representation import encode
from tests.core.bijection_cases import Case
from tests.molecules.small_flows import DRUGS

SMILES = ["C", "CCO", "c1ccccc1", "CC(=O)N", "C1CC1"]


@dataclass(frozen=True)
class MoleculeCase(Case):
    """A bijection between molecules, which are discrete, and latents."""

    def data(self, batch: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
        """Packed molecules, whatever the dtype."""
        atoms, bonds = encode([graph_of(smiles, "dfs") for smiles in SMILES], DRUGS)
        return pack(torch.from_numpy(atoms), torch.from_numpy(bonds))[:batch]


def decision_cdfs() -> Bijection:
    """A small graph transformer's."""
    network = GraphTransformer(len(DRUGS.atom_types), DRUGS.max_atoms, width=8, layers=1, heads=2)
    return DecisionCDFs(DRUGS, network)


CASES = {"decision_cdfs": MoleculeCase(decision_cdfs, ())}
