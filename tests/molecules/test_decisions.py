import numpy as np
import pytest
import torch

from arflows.molecules.chemistry import graph_of
from arflows.molecules.decisions import FAR, decisions, pack, prefix_distances, unpack
from arflows.molecules.graph import reorder
from arflows.molecules.representation import encode
from tests.molecules.small_flows import DRUGS

SMILES = ["C", "CCO", "c1ccc2ccccc2c1", "CC(=O)Nc1ccc(O)cc1", "C1CC2CCC1CC2", "N#CC1CC1", "C[N+](=O)[O-]"]


def read(graphs, latest_first=True):
    atoms, bonds = (torch.from_numpy(part) for part in encode(graphs, DRUGS))
    return decisions(pack(atoms, bonds), DRUGS.max_atoms, len(DRUGS.atom_types), DRUGS.max_back_bonds, latest_first)


@pytest.mark.parametrize("latest_first", [True, False])
def test_decisions_are_those_of_a_plain_loop(latest_first):
    graphs = [graph_of(smiles, "dfs") for smiles in SMILES]
    given = read(graphs, latest_first)
    for row, graph in enumerate(graphs):
        expected = []
        for i in range(1, len(graph.atoms)):
            partners = sorted(((j, order) for a, j, order in graph.bonds if a == i), reverse=latest_first)
            expected += [(i, 1 + 3 * j + order - 1) for j, order in partners] + [(i, 0)]
        real = given.row_real[row]
        assert (
            list(zip(given.row_atom[row][real].tolist(), given.row_choice[row][real].tolist(), strict=True)) == expected
        )
        assert given.sizes[row] == len(graph.atoms)
        names = [DRUGS.atom_types[kind] for kind in given.types[row][: len(graph.atoms)]]
        assert tuple(names) == graph.atoms


def test_about_three_decisions_an_atom():
    graph = graph_of("CC(=O)Nc1ccc(O)cc1", "dfs")
    given = read([graph])
    assert int(given.row_real.sum()) + len(graph.atoms) + 1 == 3 * len(
        graph.atoms
    )  # one ring: n bonds, n − 1 ends, a stop


@pytest.mark.parametrize("latest_first", [True, False])
def test_every_decision_made_is_allowed_and_earlier_candidates_are_not_again(latest_first):
    given = read([graph_of(smiles, "dfs") for smiles in SMILES], latest_first)
    chosen = given.row_choice > 0
    assert given.allowed.gather(2, given.row_partner[..., None])[..., 0][chosen].all()
    again = (given.row_before & chosen[:, None]).nonzero()
    for molecule, row, before in again.tolist():
        assert not given.allowed[molecule, row, given.row_partner[molecule, before]]


def test_prefix_distances_are_those_of_shortest_paths():
    graph = reorder(graph_of("C1CC2CCC1CC2C", "dfs"), "dfs", np.random.default_rng(1))
    given = read([graph])
    size = len(graph.atoms)
    for last in range(size):
        distances = np.full((last + 1, last + 1), FAR)
        np.fill_diagonal(distances, 0)
        for i, j, _ in graph.bonds:
            if i <= last:
                distances[i, j] = distances[j, i] = 1
        for k in range(last + 1):
            distances = np.minimum(distances, distances[:, k, None] + distances[k])
        np.testing.assert_array_equal(given.distances[0, last, : last + 1, : last + 1].numpy(), distances)


def test_distances_end_at_far():
    chain = torch.zeros(1, 20, 20, dtype=torch.uint8)
    for i in range(1, 20):
        chain[0, i, i - 1] = chain[0, i - 1, i] = 1
    assert prefix_distances(chain)[0, -1, 0].tolist() == [min(i, FAR) for i in range(20)]


def test_nearness_of_a_ring_closure_is_the_distance_around():
    given = read([graph_of("C1CCCCC1", "dfs")])
    closing = int((given.row_choice[0] > 0).nonzero()[-1])  # the last atom's second bond
    assert given.nearness[0, closing, given.row_partner[0, closing]] == FAR + 1 + 4


def test_pack_and_unpack():
    atoms, bonds = (torch.from_numpy(part) for part in encode([graph_of("CCO", "dfs")], DRUGS))
    for back, part in zip(unpack(pack(atoms, bonds), DRUGS.max_atoms), (atoms, bonds), strict=True):
        torch.testing.assert_close(back, part)
