"""Small flows with noise in their weights, for tests of the model."""

import torch

from arflows.molecules.model import MoleculeFlow
from arflows.molecules.representation import MoleculeSpec

DRUGS = MoleculeSpec(
    atom_types=("C", "N", "O", "S", "F", "N+", "O-"),
    valences=(4, 3, 2, 6, 1, 4, 1),
    max_atoms=14,
    max_back_bonds=3,
    look_back=13,
    order="dfs",
)
TINY = MoleculeSpec(atom_types=("C", "O"), valences=(4, 2), max_atoms=3, max_back_bonds=2, look_back=2, order="dfs")


def noisy(spec: MoleculeSpec, scale: float = 0.1, seed: int = 0, **options) -> MoleculeFlow:
    """A flow whose logits are far from uniform."""
    torch.manual_seed(seed)
    flow = MoleculeFlow(spec.as_dict(), **{"width": 16, "layers": 2, "heads": 2, **options}).eval()
    for parameter in flow.parameters():
        parameter.data += scale * torch.randn_like(parameter)
    return flow
