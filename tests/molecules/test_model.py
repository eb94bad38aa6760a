import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from arflows.core.runtime.errors import UserError
from arflows.molecules import marginal
from arflows.molecules.chemistry import graph_of
from arflows.molecules.decisions import packed
from arflows.molecules.generation import FromLatents, Known, grow, latent_shape
from arflows.molecules.graph import Graph, permuted
from arflows.molecules.model import MoleculeFlow
from tests.molecules.small_flows import DRUGS, TINY, noisy

SMILES = ["CCO", "c1ccc2ccccc2c1", "CC(=O)Nc1ccc(O)cc1", "C1CC2CCC1CC2", "N#CC1CC1", "C[N+](=O)[O-]", "O"]


@pytest.fixture(scope="module")
def flow():
    return noisy(DRUGS)


@pytest.fixture(scope="module")
def tiny():
    return noisy(TINY)


def everything(spec):
    """All graphs that the representation of a tiny spec has, by brute force."""
    found = []
    for size in range(1, spec.max_atoms + 1):
        pairs = list(itertools.combinations(range(size), 2))
        for kinds in itertools.product(spec.atom_types, repeat=size):
            for orders in itertools.product(range(4), repeat=len(pairs)):
                bonds = tuple(sorted((j, i, order) for (i, j), order in zip(pairs, orders, strict=True) if order))
                if all(any(i == atom for i, _, _ in bonds) for atom in range(1, size)):
                    found.append(Graph(kinds, bonds))
    return found


def scores(flow, graphs):
    from dataclasses import replace

    wide = replace(flow.spec, valences=(9,) * len(flow.spec.valences))
    return flow.log_prob(packed(graphs, wide)).detach()


@pytest.mark.parametrize("order", ["dfs", "bfs"])
def test_probabilities_of_all_molecules_sum_to_one(order):
    from dataclasses import replace

    flow = noisy(replace(TINY, order=order), scale=0.5).double()
    graphs = everything(TINY)
    assert len(graphs) == 2 + 4 * 3 + 8 * (3 * 15)
    total = scores(flow, graphs).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-6)


def test_sampled_frequencies_match_probabilities(tiny):
    graphs = everything(TINY)
    expected = scores(tiny, graphs).double().exp().numpy()
    count = 20_000
    drawn = [each.graph for each in tiny.sample(count, masks=False, seed=3, batch_size=5000)]
    index = {graph: k for k, graph in enumerate(graphs)}
    observed = np.bincount([index[graph] for graph in drawn], minlength=len(graphs))
    often = expected * count >= 5
    cells = [*zip(observed[often], expected[often] * count, strict=True)]
    cells.append((observed[~often].sum(), expected[~often].sum() * count))
    chi_square = sum((o - e) ** 2 / e for o, e in cells)
    freedom = len(cells) - 1
    assert freedom > 40
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)  # mean and standard deviation of χ²


def test_sampled_frequencies_with_masks_match_those_of_the_policy(tiny):
    drawn = tiny.sample(20_000, seed=4, batch_size=5000)
    by_graph = {}
    for each in drawn:
        by_graph.setdefault(each.graph, [0, math.exp(each.log_prob_policy)])[0] += 1
    frequent = [(seen, share * len(drawn)) for seen, share in by_graph.values() if share * len(drawn) >= 5]
    chi_square = sum((o - e) ** 2 / e for o, e in frequent)
    assert len(frequent) > 20
    assert chi_square < len(frequent) + 4 * math.sqrt(2 * len(frequent))
    assert sum(share for _, share in by_graph.values()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("masks", [False, True])
def test_streamed_log_probabilities_are_those_of_the_parallel_pass(flow, masks):
    drawn = flow.sample(64, masks=masks, seed=0)
    parallel = flow.log_prob([each.graph for each in drawn]).detach()
    streamed = torch.tensor([each.log_prob for each in drawn])
    torch.testing.assert_close(parallel, streamed, atol=1e-5, rtol=1e-6)


def test_the_policy_is_at_least_as_sure_as_the_model_and_the_same_without_masks(flow):
    for each in flow.sample(32):
        assert each.log_prob_policy >= each.log_prob
    for each in flow.sample(32, masks=False):
        assert each.log_prob_policy == each.log_prob


@pytest.mark.parametrize("masks", [True, False])
def test_samples_are_scored_as_they_were_drawn(flow, masks):
    """Also those with more bonds than any training molecule."""
    drawn, log_prob = flow.sample_with_log_prob(64, masks=masks)
    torch.testing.assert_close(log_prob, flow.log_prob(drawn).detach(), atol=1e-3, rtol=1e-5)
    exceeding = [flow.spec.objection(each.graph) is not None for each in drawn]
    assert any(exceeding) != masks


@pytest.mark.report
def test_a_single_molecule_is_not_taken_for_a_list(flow):
    for one in ("CCO", graph_of("CCO", "dfs"), flow.sample(1)[0]):
        with pytest.raises(UserError, match="give a list"):
            flow.log_prob(one)


def test_nothing_leaks_from_the_future(flow):
    """Logits of decisions up to an atom do not change with what comes after it."""
    one = graph_of("CC(=O)Nc1ccc(O)cc1", "dfs")
    for last in range(1, len(one.atoms)):
        rng = np.random.default_rng(last)
        atoms = [*one.atoms[: last + 1], *rng.permutation(one.atoms[last + 1 :])]
        bonds = [bond for bond in one.bonds if bond[0] <= last]
        bonds += [(i, int(rng.integers(i)), int(rng.integers(1, 3))) for i in range(last + 1, len(atoms))]
        other = Graph(tuple(map(str, atoms)), tuple(bonds))
        from dataclasses import replace

        wide = replace(flow.spec, valences=(9,) * len(flow.spec.valences))
        logits = []
        for graph in (one, other):
            known = flow.bijection.read(packed([graph], wide))
            types, rows = flow.bijection.logits(known, None)
            kept = known.row_real[0] & (known.row_atom[0] <= last)
            choices = 1 + 3 * (last + 1)
            logits.append((types[0, : last + 2], rows[0, kept][:, :choices]))
        for mine, theirs in zip(*logits, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_log_prob_does_not_depend_on_the_other_molecules_of_a_batch(flow):
    together = flow.log_prob(SMILES)
    alone = torch.cat([flow.log_prob([smiles]) for smiles in SMILES])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-6)


def test_the_round_trip_counts_molecules_whatever_the_size_of_the_batch(flow, monkeypatch):
    graphs = [graph_of(smiles, "dfs") for smiles in SMILES]
    wide = torch.nn.functional.pad(packed(graphs, flow.spec), (0, 3 * 20))  # room for bonds, as a store has it
    assert flow.round_trip_error(wide).tolist() == [0] * len(SMILES)
    back = flow.decode
    monkeypatch.setattr(flow, "decode", lambda *words: [graphs[0], *back(*words)[1:-1], graphs[0]])
    assert flow.round_trip_error(wide).tolist() == [0] * (len(SMILES) - 1) + [1]


def test_round_trip_through_latents(flow):
    for masks in (False, True):
        z = flow.encode(SMILES, masks=masks)
        assert z.shape == (len(SMILES), *latent_shape(flow.spec))
        assert ((z >= 0) & (z <= 1)).all()
        assert flow.decode(z, masks=masks) == [graph_of(smiles, "dfs") for smiles in SMILES]


def test_forward_in_one_pass_is_what_the_stream_finds(flow):
    x = packed([graph_of(smiles, "dfs") for smiles in SMILES], flow.spec)
    z, log_det = flow.bijection(x)
    torch.testing.assert_close(z, flow.encode(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(log_det, flow.log_prob(x), atol=1e-5, rtol=1e-6)
    back, log_det_back = flow.bijection.inverse(z)
    torch.testing.assert_close(back[:, : x.shape[1]], x)
    torch.testing.assert_close(log_det_back, -log_det, atol=1e-5, rtol=1e-6)


def test_latents_of_samples_lie_in_their_bins(flow):
    """Decoding the middle of the bins that uniform latents fall into gives the same molecules."""
    torch.manual_seed(0)
    z = torch.rand(32, *latent_shape(flow.spec))
    grown = grow(flow.bijection.stream(32), FromLatents(z))
    known = Known(grown.packed, flow.spec)
    again = grow(flow.bijection.stream(32), known)
    torch.testing.assert_close(again.packed, grown.packed)
    torch.testing.assert_close(again.log_prob, grown.log_prob, atol=1e-5, rtol=1e-6)


def every_sequence(graph):
    """The graph in all orders of its atoms in which each but the first is bound to an earlier one."""
    found = {permuted(graph, places) for places in itertools.permutations(range(len(graph.atoms)))}
    return [each for each in found if {i for i, _, _ in each.bonds} == set(range(1, len(graph.atoms)))]


@pytest.mark.report
@pytest.mark.parametrize("order", ["dfs", "bfs"])
@pytest.mark.parametrize("smiles", ["C", "CC(C)O", "C1CC1N", "CC(C)(C)CN", "c1ccccc1O", "C1C2CC1CN2", "FC(F)(F)CO"])
def test_order_marginal_agrees_with_full_enumeration(smiles, order):
    flow = noisy(dataclasses.replace(DRUGS, order=order))
    sequences = [each for each in every_sequence(graph_of(smiles, order)) if flow.objection(each) is None]
    exact = flow.log_prob(sequences).double().logsumexp(0).item()
    estimate, error = flow.order_marginal([smiles], orders=8)
    assert estimate.item() == pytest.approx(exact, abs=1e-4)
    assert error.item() == 0


@pytest.mark.report
def test_order_marginal_of_larger_molecules_is_unbiased_and_sums_all_orders_if_they_are_kept(flow, monkeypatch):
    monkeypatch.setattr(marginal, "ENUMERATED_ATOMS", 0)
    sequences = every_sequence(graph_of("c1ccccc1O", "dfs"))
    exact = flow.log_prob(sequences).double().logsumexp(0).item()
    assert flow.order_marginal(["c1ccccc1O"], orders=len(sequences))[0].item() == pytest.approx(exact, abs=1e-4)
    ratios = np.array(
        [flow.order_marginal(["c1ccccc1O"], orders=16, seed=seed)[0].sub(exact).exp().item() for seed in range(60)]
    )
    assert abs(ratios.mean() - 1) < 4 * ratios.std(ddof=1) / math.sqrt(len(ratios))
    assert ratios.std() > 0.01


@pytest.mark.report
def test_order_marginal_is_no_lower_than_the_orders_that_were_found_and_gives_no_error_it_cannot_support(flow):
    smiles = "CC(=O)Nc1ccc(O)cc1"
    (found,) = flow.order_estimates([smiles], orders=4)
    assert found.log_prob >= found.lower_bound >= flow.log_prob([smiles]).item() - 1e-4
    assert found.effective_sample_size <= 4
    assert math.isinf(found.standard_error)  # so few orders support none
    (found,) = flow.order_estimates(["CCC(C)CCCO"], orders=128)
    assert found.effective_sample_size > marginal.ENOUGH
    assert 0 < found.standard_error < 0.5


def test_selection_keeps_the_first_and_the_largest_and_is_unbiased():
    rng = np.random.default_rng(0)
    weights = np.array([1e-6, 0.5, 0.2, *rng.uniform(0.001, 0.02, 30)])
    sums = np.zeros(len(weights))
    draws = 4000
    for _ in range(draws):
        rows, log_inclusion = marginal.select(np.log(weights), 8, rng, weights > 0)
        assert len(rows) == 8
        assert list(rows[:3]) == [0, 1, 2]
        assert (log_inclusion[:3] == 0).all()
        sums[rows] += np.exp(np.log(weights[rows]) - log_inclusion)
    assert sums / draws == pytest.approx(weights, rel=0.25)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), masks=st.booleans())
def test_molecules_of_a_seed_are_the_same_in_batches_of_any_size(seed, masks):
    flow = noisy(DRUGS)
    whole = flow.sample(20, seed=seed, masks=masks, batch_size=20)
    parts = flow.sample(20, seed=seed, masks=masks, batch_size=7)
    later = list(flow.draw(5, seed=seed, masks=masks, first=15))
    assert [each.graph for each in whole] == [each.graph for each in parts]
    assert [each.graph for each in whole[15:]] == [each.graph for each in later]


def test_temperature(flow):
    cold = flow.sample(64, temperature=0.25, seed=0)
    warm = flow.sample(64, seed=0)
    assert len({each.graph for each in cold}) < len({each.graph for each in warm})
    for each in cold[:8]:
        assert each.log_prob == pytest.approx(flow.log_prob([each.graph]).item(), abs=1e-4)


def test_interpolation_begins_and_ends_with_its_ends(flow):
    one, other = graph_of(SMILES[2], "dfs"), graph_of(SMILES[1], "dfs")
    way = flow.interpolate(one, other, steps=6)
    assert (len(way), way[0], way[-1]) == (6, one, other)
    with pytest.raises(UserError, match="steps is 1"):
        flow.interpolate(one, other, steps=1)


def test_saved_and_loaded(flow, tmp_path):
    flow.save_pretrained(tmp_path)
    again = MoleculeFlow.from_pretrained(tmp_path)
    assert again.spec == flow.spec
    torch.testing.assert_close(again.log_prob(SMILES), flow.log_prob(SMILES))


def test_what_cannot_be_represented_is_refused_with_its_reason(flow):
    for smiles, reason in {
        "CCBr": "atom type Br",
        "CCCCCCCCCCCCCCCC": "more than 14 heavy atoms",
        "CC.O": "several parts",
        "C1CC": "not SMILES",
    }.items():
        with pytest.raises(UserError, match=reason):
            flow.log_prob([smiles])


@pytest.mark.report
def test_molecules_in_every_form(flow):
    ethanol = Chem.MolFromSmiles("CCO")
    forms = ["OCC", ethanol, Chem.AddHs(ethanol), graph_of("CCO", "dfs")]
    scores = flow.log_prob(forms)
    torch.testing.assert_close(scores, scores[:1].expand(4))
    assert ethanol.GetNumAtoms() == 3
    assert flow.encode(forms).shape == (4, *latent_shape(flow.spec))
    (drawn,) = flow.sample(1, seed=3)
    assert Chem.MolToSmiles(drawn.mol) == drawn.smiles
    for one in ("CCO", ethanol, graph_of("CCO", "dfs"), drawn):
        with pytest.raises(UserError, match="give a list of molecules"):
            flow.log_prob(one)
    with pytest.raises(UserError, match="3 is no molecule"):
        flow.log_prob([3])


@pytest.mark.report
def test_no_molecules_have_no_scores(flow):
    assert flow.log_prob([]).shape == (0,)
    assert flow.encode([]).shape == (0, *latent_shape(flow.spec))
    assert [each.shape for each in flow.order_marginal([])] == [(0,), (0,)]


@pytest.mark.report
@pytest.mark.parametrize("masks", [False, True])
def test_a_model_scores_its_own_samples(flow, masks):
    drawn = flow.sample(64, masks=masks, seed=5)
    wanted = torch.tensor([each.log_prob for each in drawn])
    torch.testing.assert_close(flow.log_prob(drawn).detach(), wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.report
def test_each_call_draws_other_molecules_unless_a_seed_is_given(flow):
    def smiles(**options):
        return [each.smiles for each in flow.sample(8, **options)]

    assert smiles() != smiles()
    assert smiles(seed=1) == smiles(seed=1)
    assert smiles(generator=torch.Generator().manual_seed(1)) == smiles(generator=torch.Generator().manual_seed(1))
    torch.manual_seed(7)
    first = smiles()
    torch.manual_seed(7)
    assert smiles() == first


def test_valences_that_masks_forbid_have_no_latents_with_masks(flow):
    with pytest.raises(UserError, match="leave out masks"):
        flow.encode([Graph(("F", "C"), ((1, 0, 2),))], masks=True)


def test_every_parameter_gets_a_gradient(flow):
    flow.zero_grad()
    flow.log_prob(SMILES).sum().backward()
    assert [name for name, p in flow.named_parameters() if p.grad is None] == []


def test_half_precision_is_close(flow):
    with torch.autocast("cpu", torch.bfloat16):
        rough = flow.log_prob(SMILES)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, flow.log_prob(SMILES), atol=0.5, rtol=0.02)


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match="heads must divide width"):
        MoleculeFlow(DRUGS.as_dict(), width=10, heads=4)
    with pytest.raises(UserError, match="give spec"):
        MoleculeFlow()
