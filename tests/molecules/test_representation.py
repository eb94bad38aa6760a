import json

import pytest

from arflows.core.runtime.errors import UserError
from arflows.molecules.chemistry import graph_of
from arflows.molecules.representation import MoleculeSpec, decode, encode

SMILES = [
    "CC(=O)Oc1ccccc1C(=O)O",
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "c1ccc2[nH]ccc2c1",
    "O=[N+]([O-])c1ccc(S(N)(=O)=O)cc1",
    "C[N+](C)(C)CC(=O)[O-]",
    "N#Cc1ccccc1C#C",
    "FC(F)(F)c1nn[n-]n1",
    "C1CC2CCC1CC2",
    "CP(=O)(O)OC[Si](C)(C)C",
    "C",
]


def test_the_spec_is_measured():
    graphs = [graph_of(smiles, "dfs") for smiles in ("CCO", "C1CCC1", "C[N+](=O)[O-]")]
    spec = MoleculeSpec.measure(graphs, "dfs")
    assert spec == MoleculeSpec(("C", "O", "N+", "O-"), (2, 2, 4, 1), 4, 2, 3, "dfs")
    assert MoleculeSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec
    assert spec.differences(MoleculeSpec.measure(graphs[:2], "dfs"))


@pytest.mark.parametrize(
    ("smiles", "objection"),
    [
        ("CCN", "type N does not occur"),
        ("CCCCC", "more than 4 heavy atoms"),
        ("CC(C)O", "bonds of 3, more than the 2"),
        ("C1CCC1", None),
        ("CCO", None),
    ],
)
def test_what_the_spec_does_not_cover_is_said(smiles, objection):
    spec = MoleculeSpec.measure([graph_of(s, "dfs") for s in ("CCO", "C1CCC1")], "dfs")
    found = spec.objection(graph_of(smiles, "dfs"))
    assert found is None if objection is None else objection in found


def test_reaching_back_and_closing_rings_are_measured_and_held():
    chains = MoleculeSpec(("C",), (4,), 10, 1, 1, "dfs")
    assert "reaches back" in chains.objection(graph_of("C1CCC1", "dfs"))
    assert "bonds to earlier ones" in MoleculeSpec(("C",), (4,), 10, 1, 9, "dfs").objection(graph_of("C1CCC1", "dfs"))


def test_arrays_hold_graphs():
    graphs = [graph_of(smiles, "bfs") for smiles in SMILES]
    spec = MoleculeSpec.measure(graphs, "bfs")
    atoms, bonds = encode(graphs, spec)
    assert atoms.shape == (len(SMILES), spec.max_atoms)
    assert bonds.shape == (len(SMILES), max(len(graph.bonds) for graph in graphs), 3)
    assert decode(atoms, bonds, spec) == graphs
    with pytest.raises(UserError, match="cannot be represented"):
        encode([graph_of("CI")], spec)
