"""Autoregressive flows over molecular graphs, with exact likelihoods and valid samples.

>>> from arflows.molecules import MoleculeFlow, MoleculeSpec
>>> spec = MoleculeSpec(("C", "N", "O"), (4, 3, 2), max_atoms=9, max_back_bonds=2, look_back=8, order="dfs")
>>> flow = MoleculeFlow(spec.as_dict(), width=16, layers=1, heads=2)
>>> molecules = flow.sample(10)
>>> flow.log_prob(molecules).shape
torch.Size([10])

The models are imported when they are first used, so that the command line can answer without loading PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arflows.molecules.model import GraphAF, GraphFlow, MoleculeFlow
    from arflows.molecules.representation import MoleculeSpec

__all__ = ["GraphAF", "GraphFlow", "MoleculeFlow", "MoleculeSpec"]

_HOMES = dict.fromkeys(__all__, "arflows.molecules.model") | {"MoleculeSpec": "arflows.molecules.representation"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
