from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from rdkit import Chem
from safetensors.torch import load_file, save_file

from arflows.core.runtime.errors import UserError
from arflows.data.store import Store
from arflows.molecules.chemistry import canonical_smiles, mol_of
from arflows.molecules.fragments import fragment_of
from arflows.molecules.graph import permuted
from arflows.molecules.model import MoleculeFlow
from arflows.molecules.records import targets_from
from arflows.molecules.train import train
from arflows.molecules.workers import Workers
from tests.molecules.small_flows import DRUGS, noisy


@pytest.fixture(scope="module")
def flow():
    return noisy(DRUGS)


@pytest.fixture(scope="module")
def conditional():
    flow = noisy(DRUGS, properties=["logP", "MW"])
    torch.manual_seed(1)
    rows = torch.randn(500, 2) * torch.tensor([2.0, 50.0]) + torch.tensor([1.0, 200.0])
    flow.initialize(flow._packed(["CCO"]).expand(500, -1), rows)
    return flow


def test_masked_samples_are_all_valid_and_raw_ones_are_not(flow):
    masked = flow.sample(300, seed=1)
    assert all(each.valid_raw for each in masked)
    for each in masked:
        assert canonical_smiles(each.smiles) == each.smiles
        assert len(Chem.GetMolFrags(mol_of(each.graph))) == 1
        limits = dict(zip(DRUGS.atom_types, DRUGS.valences, strict=True))
        assert all(used <= limits[kind] for kind, used in zip(each.graph.atoms, each.graph.valences(), strict=True))
    raw = flow.sample(300, seed=1, masks=False)
    assert 0 < sum(each.valid_raw for each in raw) < 300


@pytest.mark.parametrize("limits", [(5, 5), (1, 4), (10, None), (14, 14)])
def test_limits_of_size(flow, limits):
    low, high = limits
    sizes = [len(each.graph.atoms) for each in flow.sample(100, min_atoms=low, max_atoms=high)]
    assert min(sizes) >= low
    assert max(sizes) <= (high or DRUGS.max_atoms)
    assert all(each.valid_raw for each in flow.sample(100, min_atoms=low, max_atoms=high))


def test_limits_that_do_not_fit(flow):
    for options in ({"min_atoms": 0}, {"min_atoms": 5, "max_atoms": 4}, {"max_atoms": 99}):
        with pytest.raises(UserError, match="the model's 14"):
            flow.sample(1, **options)
    with pytest.raises(UserError, match="held by masks"):
        flow.sample(1, max_atoms=3, masks=False)
    with pytest.raises(UserError, match="positive"):
        flow.sample(1, temperature=0)


def test_workers_change_nothing(flow):
    with Workers(2) as pool:
        several = flow.sample(40, seed=0, batch_size=10, workers=pool)
    assert several == flow.sample(40, seed=0, batch_size=10)


# ---------------------------------------------------------------------------------------------- fragments


@pytest.mark.parametrize("smiles", ["*c1ccncc1", "C1CN(*)CCN1*", "O=C(*)N*", "*[N+](=O)[O-]", "CC*", "*=C1CCCCC1"])
def test_a_fragment_stays_as_it_is_but_for_its_attachment_points(flow, smiles):
    fragment = fragment_of(smiles, flow.spec)
    size = len(fragment.graph.atoms)
    drawn = flow.sample(60, fragment=smiles, seed=2)
    for each in drawn:
        assert each.valid_raw
        assert len(each.graph.atoms) > size
        added = [0] * size
        for i, j, order in each.graph.bonds:
            if i >= size > j:
                added[j] += order
        begun = [fragment.permuted(list(places)) for places in _orders_of(fragment.graph, each.graph)]
        assert any(all(more <= room for more, room in zip(added, inside.free, strict=True)) for inside in begun)
        assert sum(added) > 0


@pytest.mark.report
@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize(
    "smiles", ["*N(*)S(C)(=O)=O", "*N(*)c1ccccc1", "*C(*)(*)c1ccccc1", "*=C(*)C", "*#CC", "*C(*)=C(*)*"]
)
def test_each_attachment_point_takes_one_bond_of_its_order(flow, smiles, fill):
    fragment = fragment_of(smiles, flow.spec)
    size = len(fragment.graph.atoms)
    points = sorted(order for each in fragment.attachments for order in each)
    for most in (None, size + len(points)):
        for each in flow.sample(64, seed=1, fragment=smiles, fill_attachments=fill, max_atoms=most):
            assert each.valid_raw
            added = Counter(order for i, j, order in each.graph.bonds if i >= size > j)
            assert not added - Counter(points)
            if fill:
                assert sum(added.values()) == len(points)


@pytest.mark.report
def test_attachment_points_keep_to_limits_of_size(flow):
    for low in (13, 14):
        for each in flow.sample(64, seed=1, fragment="*=C(*)C", min_atoms=low, fill_attachments=True):
            assert low <= len(each.graph.atoms) <= 14
            assert each.valid_raw


@pytest.mark.report
def test_attachment_points_that_cannot_be_filled(flow):
    with pytest.raises(UserError, match="mark them by"):
        flow.sample(1, fragment="CC", fill_attachments=True)
    with pytest.raises(UserError, match="mark them by"):
        flow.sample(1, fill_attachments=True)
    with pytest.raises(UserError, match="raise max_atoms"):
        flow.sample(1, fragment="*C(*)*", max_atoms=3, fill_attachments=True)


def _orders_of(fragment, whole):
    """The orders in which the fragment's atoms begin the whole, with all of their bonds and no others."""
    size = len(fragment.atoms)
    beginning = (whole.atoms[:size], tuple(bond for bond in whole.bonds if bond[0] < size))
    return [places for places in permutations(range(size)) if tuple(permuted(fragment, places)) == beginning]


def test_the_policy_is_scored_given_the_fragment(flow):
    for each in flow.sample(10, fragment="*c1ccncc1"):
        assert each.log_prob_policy > each.log_prob  # the fragment itself is given


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("c1ccc", "no SMILES that RDKit can read"),
        ("C.C*", "not one connected piece"),
        ("*", "not one connected piece|exactly one atom"),
        ("C*C", "exactly one atom beside it"),
        ("*[Si]", "atom type Si"),
        ("FF", "no atom with a free valence"),
        ("*CCCCCCCCCCCCCCC", "as many atoms as a molecule may"),
        ("CS(C)(C)(C)(C)(C)*", "more bonds than the model knows|no SMILES"),
    ],
)
def test_a_fragment_that_is_no_start(flow, smiles, reason):
    with pytest.raises(UserError, match=reason):
        flow.sample(1, fragment=smiles)


# ---------------------------------------------------------------------------------------------- conditions


def test_conditions_change_what_is_sampled(conditional):
    low = torch.tensor([[-3.0, 100.0]]).expand(20, -1)
    high = torch.tensor([[5.0, 300.0]]).expand(20, -1)
    assert [x.graph for x in conditional.sample(20, low, seed=0)] != [
        x.graph for x in conditional.sample(20, high, seed=0)
    ]


def test_streamed_log_probabilities_with_a_context(conditional):
    context = torch.tensor([[0.5, 150.0], [2.0, 250.0]]).repeat(20, 1)
    drawn = conditional.sample(40, context)
    parallel = conditional.log_prob(drawn, context).detach()
    torch.testing.assert_close(parallel, torch.tensor([each.log_prob for each in drawn]), atol=1e-4, rtol=1e-5)


def test_targets_lie_in_their_ranges_and_go_together():
    torch.manual_seed(0)
    first = torch.randn(1000)
    rows = torch.stack([first, first * 10 + torch.randn(1000)], 1)
    extremes = torch.stack([rows.amin(0), rows.amax(0)])
    inside = targets_from(rows, ["a", "b"], {"a": (0.5, 1.0)}, 0, 0, 200, extremes)
    assert ((inside[:, 0] >= 0.5) & (inside[:, 0] <= 1)).all()
    assert len(inside.unique(dim=0)) > 20
    at = targets_from(rows, ["a", "b"], {"a": 1.0}, 0, 0, 200, extremes)
    assert (at[:, 0] == 1).all()
    assert abs(at[:, 1].mean() - 10) < 2
    torch.testing.assert_close(targets_from(rows, ["a", "b"], {"a": 1.0}, 0, 50, 10, extremes), at[50:60])


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"QED": 0.5}, "not conditional on 'QED': it knows logP, MW"),
        ({"logP": (3.0, 2.0)}, "give the lower end first"),
        ({"logP": 90.0}, "impossible for this model"),
        ({"logP": (90.0, 99.0)}, "impossible for this model"),
        ({"logP": (1.0, 1.001), "MW": (200.0, 200.001)}, "widen a range"),
    ],
)
def test_wishes_that_cannot_be_met(conditional, wanted, reason):
    with pytest.raises(UserError, match=reason):
        conditional.sample(1, wanted)


@pytest.mark.report
def test_wanted_values_may_lie_anywhere_between_the_extremes_of_all_training_molecules():
    rows = torch.linspace(-1, 3, 1024)[:, None]
    extremes = torch.tensor([[-4.0], [6.1]])
    assert (targets_from(rows, ["logP"], {"logP": 6.0}, 0, 0, 5, extremes) == 6).all()
    with pytest.raises(UserError, match=r"logP of 6.2 is impossible for this model: training molecules have -4 to 6.1"):
        targets_from(rows, ["logP"], {"logP": 6.2}, 0, 0, 5, extremes)
    with pytest.raises(UserError, match="none of the 1,024 training molecules that the model keeps"):
        targets_from(rows, ["logP"], {"logP": (5.9, 6.0)}, 0, 0, 5, extremes)
    with pytest.raises(UserError, match=r"without the extremes of its training data.* have -1 to 3"):
        targets_from(rows, ["logP"], {"logP": 6.0}, 0, 0, 5, torch.full_like(extremes, torch.nan))


@pytest.mark.report
def test_extremes_are_those_of_all_training_molecules(recipe, store, tmp_path):
    out = tmp_path / "conditional"
    words = ["--config", recipe, "--out", out, "--model.flow.init_args.properties", "[logP, MW]"]
    train(*map(str, words), "--trainer.max_steps", "1")
    kept = MoleculeFlow.from_pretrained(out / "model").context_encoder.extremes
    names = Store(store).categories["properties"]
    values = Store(store).array("train", "properties")[:, [names.index("logP"), names.index("MW")]]
    torch.testing.assert_close(kept, torch.tensor(np.stack([values.min(0), values.max(0)])).float())


@pytest.mark.report
def test_models_saved_without_extremes_load_and_say_so(conditional, tmp_path):
    conditional.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    state = load_file(weights)
    del state["context_encoder.extremes"]
    save_file(state, weights)
    older = MoleculeFlow.from_pretrained(tmp_path)
    assert older.context_encoder.extremes.isnan().all()
    with pytest.raises(UserError, match="without the extremes"):
        older.sample(1, {"logP": 90.0})


def test_a_model_without_conditions_takes_none_and_one_with_them_needs_them(flow, conditional):
    with pytest.raises(UserError, match="trained without any"):
        flow.sample(1, {"logP": 1.0})
    with pytest.raises(UserError, match="conditional on nothing"):
        flow.log_prob(["C"], torch.zeros(1, 2))
    with pytest.raises(UserError, match="conditional on logP, MW"):
        conditional.log_prob(["C"])
    assert len(conditional.sample(5)) == 5  # with properties of training molecules


def test_kept_rows_are_saved_and_not_replaced(conditional, tmp_path):
    before = conditional.context_encoder.rows.clone()
    assert before.any()
    conditional.initialize(conditional._packed(["CCO", "CCC"]), torch.tensor([[9.0, 9.0], [8.0, 8.0]]))
    torch.testing.assert_close(conditional.context_encoder.rows, before)
    conditional.save_pretrained(tmp_path)
    torch.testing.assert_close(type(conditional).from_pretrained(tmp_path).context_encoder.rows, before)
