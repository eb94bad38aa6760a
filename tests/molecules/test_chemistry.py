from collections import Counter

import numpy as np
import pytest
from rdkit import Chem

from arflows.data.molecule_files import nci
from arflows.molecules import chemistry
from arflows.molecules.chemistry import (
    Refused,
    automorphisms,
    canonical_smiles,
    flat_smiles,
    graph_and_smiles,
    graph_of,
    largest_valence,
    mol_of,
    parse,
)
from arflows.molecules.graph import Graph, abandoned, permuted, random_orders, reorder, walk, walks

DRUGS = [
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


@pytest.mark.parametrize("order", ["bfs", "dfs"])
@pytest.mark.parametrize("smiles", DRUGS)
def test_graphs_give_the_molecule_back(smiles, order):
    graph, flat = graph_and_smiles(smiles, order)
    assert flat_smiles(mol_of(graph)) == flat == flat_smiles(Chem.MolFromSmiles(smiles))


@pytest.mark.parametrize("order", ["bfs", "dfs"])
@pytest.mark.parametrize("smiles", DRUGS)
def test_the_canonical_order_does_not_depend_on_how_a_molecule_is_written(smiles, order):
    molecule = Chem.MolFromSmiles(smiles)
    expected = graph_of(smiles, order)
    for seed in range(5):
        places = np.random.default_rng(seed).permutation(molecule.GetNumAtoms()).tolist()
        assert graph_of(Chem.RenumberAtoms(molecule, places), order) == expected


def test_a_graph_by_hand():
    assert graph_of("OC=C", "dfs") == Graph(("C", "C", "O"), ((1, 0, 2), (2, 1, 1)))
    assert graph_of("C[NH3+]", "bfs") == Graph(("C", "N+"), ((1, 0, 1),))


def test_depth_first_is_the_order_of_canonical_smiles():
    for smiles in DRUGS:
        graph, flat = graph_and_smiles(smiles, "dfs")
        written = Chem.MolFromSmiles(flat)
        assert [kind.rstrip("+-") for kind in graph.atoms] == [atom.GetSymbol() for atom in written.GetAtoms()]


@pytest.mark.parametrize("order", ["bfs", "dfs"])
@pytest.mark.parametrize("smiles", DRUGS)
def test_every_atom_but_the_first_is_bound_to_an_earlier_one(smiles, order):
    for rng in (None, np.random.default_rng(1)):
        graph = reorder(graph_of(smiles, order), order, rng)
        assert {i for i, _, _ in graph.bonds} == set(range(1, len(graph.atoms)))
        assert all(j < i for i, j, _ in graph.bonds)
        assert list(graph.bonds) == sorted(graph.bonds)


def test_canonical_orders_stay_when_repeated():
    for smiles in DRUGS:
        for order in ("bfs", "dfs"):
            graph = graph_of(smiles, order)
            assert reorder(graph, order) == graph
            assert reorder(graph_of(smiles, "dfs"), order) == graph


def test_orders_differ_by_their_queue():
    branched = Graph(("C", "C", "C", "N"), ((1, 0, 1), (2, 1, 1), (3, 0, 1)))
    assert walk(branched, "bfs") == [0, 1, 3, 2]
    assert walk(branched, "dfs") == [0, 1, 2, 3]


@pytest.mark.parametrize("order", ["bfs", "dfs"])
def test_random_orders_are_the_possible_ones_and_every_first_atom_is_equally_likely(order):
    graph = graph_of("CC1CC1O", order)
    rng = np.random.default_rng(0)
    drawn = [tuple(walk(graph, order, rng)) for _ in range(4000)]
    assert set(drawn) == {tuple(places) for places in walks(graph, order)}
    firsts = np.bincount([places[0] for places in drawn])
    assert firsts == pytest.approx(np.full(5, 800), abs=5 * np.sqrt(800))
    different = random_orders(graph, order, 50)
    assert len(set(different)) == len(different) > 5
    assert set(different) <= {permuted(graph, places) for places in walks(graph, order)}


@pytest.mark.parametrize("order", ["bfs", "dfs"])
def test_only_other_orders_leave_atoms_behind(order):
    graph = graph_of("CC(CCO)CCN", order)
    neighbours = graph.neighbours()
    for places in walks(graph, order):
        assert [abandoned(neighbours, places[:k], order) for k in range(len(places) + 1)] == [0] * (len(places) + 1)
    chain = graph_of("CCCCC", "dfs").neighbours()
    assert [abandoned(chain, [2, 1, 3][:k], "dfs") for k in range(4)] == [0, 0, 0, 1]
    assert [abandoned(chain, [2, 1, 0][:k], "bfs") for k in range(4)] == [0, 0, 0, 1]


def test_every_order_of_a_chain_and_a_star():
    assert sorted(walks(graph_of("CCO", "dfs"), "dfs")) == [[0, 1, 2], [1, 0, 2], [1, 2, 0], [2, 1, 0]]
    assert len(walks(graph_of("CC(C)C", "bfs"), "bfs")) == 6 + 3 * 2  # from the middle, and from each end


@pytest.mark.parametrize(("smiles", "count"), [("CC(C)(C)C", 24), ("CC", 2), ("CO", 1), ("C1CC1", 6), ("c1ccccc1", 6)])
def test_automorphisms_are_counted(smiles, count):
    graph = graph_of(smiles)
    found = automorphisms(graph)
    assert len({tuple(each) for each in found}) == len(found) == count
    sequences = Counter(permuted(graph, places) for places in walks(graph, "bfs"))
    assert set(sequences.values()) == {count}  # so many orders give the same sequence


def test_stereochemistry_and_maps_are_dropped():
    assert canonical_smiles("C[C@H](N)C(=O)O") == canonical_smiles("C[C@@H](N)C(O)=O") == "CC(N)C(=O)O"
    assert canonical_smiles("C/C=C/C") == canonical_smiles("C/C=C\\C") == "CC=CC"
    assert canonical_smiles("[CH3:1][OH:2]") == "CO"
    assert [chemistry.has_stereochemistry(parse(s)) for s in ("C[C@H](N)O", "F/C=C/F", "CC=CC")] == [1, 1, 0]


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("C1CC", "not SMILES"),
        ("hello", "not SMILES"),
        ("", "no atoms"),
        ("C(C)(C)(C)(C)C", "more bonds than its valence"),
        ("c1cccc1", "cannot be kekulised"),
        ("[Na+].[Cl-]", "several parts: a salt"),
        ("[Cl-].[H+].CCN", "several parts: a salt"),
        ("[Na]C", "element Na"),
        ("CC.O", "several parts"),
        ("C[Hg]C", "element Hg"),
        ("C[CH2]", "a radical"),
        ("[13CH4]", "an isotope"),
        ("[2H]C", "an isotope"),
        ("N->B", "a dative bond"),
        ("C*", "a dummy atom"),
        ("[H][H]", "a hydrogen"),
        ("C[SH2]C", "hydrogens or charges"),
        ("C(C)" * 100_000, "longer than 5,000 characters"),
    ],
)
def test_what_has_no_graph_is_refused_with_the_reason(smiles, reason, capfd):
    with pytest.raises(Refused, match=reason):
        graph_of(smiles)
    assert capfd.readouterr().err == ""  # RDKit's log stays quiet


@pytest.mark.parametrize(
    ("kind", "most"), [("C", 4), ("N", 3), ("N+", 4), ("O", 2), ("O-", 1), ("S", 6), ("P", 5), ("F", 1), ("C-", 3)]
)
def test_valences_are_those_of_rdkit(kind, most):
    assert largest_valence(kind) == most


def test_impossible_graphs_are_no_molecules():
    assert mol_of(Graph(("C", "O"), ((1, 0, 3),))) is None


def test_the_built_in_set_comes_back():
    """Whatever `graph_of` does not refuse, in a random order, is the same molecule again."""
    rng = np.random.default_rng(0)
    came = 0
    for entry in list(nci())[::25]:
        try:
            graph, smiles = graph_and_smiles(entry.text, "bfs")
        except Refused:
            continue
        shuffled = reorder(graph, "bfs", rng)
        assert canonical_smiles(flat_smiles(mol_of(shuffled))) == smiles
        came += 1
    assert came > 180


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zinc250k_test", "qm9"])
def test_real_sets_come_back(data_folder, name):
    from arflows.data.molecule_files import read_molecules

    entries = list(read_molecules(data_folder / "molecules" / f"{name}.smi.gz"))
    reasons = Counter()
    for entry in entries:
        try:
            graph_of(entry.text)
        except Refused as refused:
            reasons[str(refused)] += 1
    assert reasons.total() <= 0.001 * len(entries), reasons


@pytest.mark.report
@pytest.mark.parametrize(("smiles", "flat"), [("[H]/N=C(\\C)N", "CC(=N)N"), ("[H]/N=C(/c1ccccc1)N", "N=C(N)c1ccccc1")])
def test_a_hydrogen_that_only_marks_the_geometry_of_an_imine_is_dropped(smiles, flat):
    assert graph_and_smiles(smiles)[1] == flat
