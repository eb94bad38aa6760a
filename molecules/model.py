"""List of the flows over molecules.

Importing this module imports all of them, which `GraphFlow.from_pretrained` needs to find them by name.
"""

from arflows.molecules.graph_flow import GraphFlow
from arflows.molecules.graphaf import GraphAF
from arflows.molecules.molecule_flow import MoleculeFlow

__all__ = ["GraphAF", "GraphFlow", "MoleculeFlow"]
