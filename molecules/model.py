"""The flows over molecules, by the names of the papers they follow."""

from arflows.molecules.graph_flow import GraphFlow
from arflows.molecules.graphaf import GraphAF
from arflows.molecules.molecule_flow import MoleculeFlow

__all__ = ["GraphAF", "GraphFlow", "MoleculeFlow"]
