import pytest

from arflows.molecules.chemistry import graph_of, mol_of
from arflows.molecules.graph import Graph
from arflows.molecules.postprocess import repaired


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        # C≡C, and the first wants two bonds more: one is left for the oxygen.
        (Graph(("C", "C", "O"), ((1, 0, 3), (2, 0, 2))), Graph(("C", "C", "O"), ((1, 0, 3), (2, 0, 1)))),
        # The fluorine's second bond goes; all hold together.
        (Graph(("F", "C", "C"), ((1, 0, 1), (2, 0, 1), (2, 1, 1))), Graph(("F", "C", "C"), ((1, 0, 1), (2, 1, 1)))),
        # The chain falls off the fluorine, and is the largest part.
        (
            Graph(("C", "F", "C", "C", "O"), ((1, 0, 1), (2, 1, 1), (3, 2, 1), (4, 3, 2))),
            Graph(("C", "C", "O"), ((1, 0, 1), (2, 1, 2))),
        ),
        # Of equal parts the earliest.
        (
            Graph(("O", "F", "F", "N"), ((1, 0, 1), (2, 1, 1), (3, 2, 1))),
            Graph(("O", "F"), ((1, 0, 1),)),
        ),
    ],
)
def test_bonds_beyond_the_valence_go(graph, expected):
    assert mol_of(graph) is None
    assert repaired(graph) == expected
    assert mol_of(repaired(graph)) is not None


@pytest.mark.parametrize("smiles", ["CCO", "c1ccc2[nH]ccc2c1", "C[N+](=O)[O-]", "C"])
def test_what_is_right_stays(smiles):
    graph = graph_of(smiles)
    assert repaired(graph) == graph
