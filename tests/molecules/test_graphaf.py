import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from arflows.core.runtime.errors import UserError
from arflows.molecules import evaluate, sample, train
from arflows.molecules.chemistry import graph_of
from arflows.molecules.decisions import packed
from arflows.molecules.graphaf import GraphAF, RelationalConvolutions, Steps, _dense
from arflows.molecules.model import GraphFlow
from arflows.molecules.prepare import prepare
from tests.launch import command
from tests.molecules.small_flows import DRUGS

SPEC = replace(DRUGS, order="bfs", look_back=6)
SMILES = ["CCO", "CC(=O)Nc1ccc(O)cc1", "N#CC1CC1", "O"]


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    flow = GraphAF(SPEC.as_dict(), width=8, layers=2, look_back=6).eval()
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return flow


def test_convolutions_are_those_of_the_equation():
    torch.manual_seed(0)
    network = RelationalConvolutions(2, 4, 2).double()
    types = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]]).double()
    orders = torch.zeros(1, 4, 4, dtype=torch.uint8)
    orders[0, 0, 1] = orders[0, 1, 0] = 2
    orders[0, 1, 2] = orders[0, 2, 1] = 1
    hidden = types[0].numpy()
    for weight in network.weights:
        total = 0
        for relation in range(3):
            edges = (orders[0].numpy() == relation + 1) + np.diag([1.0, 1.0, 1.0, 0.0])
            scale = np.diag(1 / np.sqrt(np.maximum(edges.sum(1), 1)))
            total = total + np.maximum(scale @ edges @ scale @ hidden @ weight[relation].detach().numpy(), 0)
        hidden = total
    np.testing.assert_allclose(network(types, orders)[0].detach().numpy(), hidden, atol=1e-12)
    assert (hidden[3] == 0).all()


def test_weights_of_older_versions_are_loaded(flow):
    older = {
        name.replace("type_head", "of_type").replace("bond_head", "of_bond"): weight
        for name, weight in flow.state_dict().items()
    }
    assert older.keys() != flow.state_dict().keys()
    loaded = GraphAF(SPEC.as_dict(), width=8, layers=2, look_back=6)
    loaded.load_state_dict(older)
    assert all(torch.equal(weight, flow.state_dict()[name]) for name, weight in loaded.state_dict().items())


def test_each_step_sees_the_graph_so_far_and_no_more(flow):
    """Steps in one batch against each by itself, on a graph in which nothing later exists."""
    graph = graph_of("CC(=O)Nc1ccc(O)cc1", "bfs")
    x = packed([graph], SPEC)
    atoms, orders = _dense(x, SPEC.max_atoms)
    steps = flow._steps(torch.tensor([len(graph.atoms)]))
    expected = [(i, j) for i in range(len(graph.atoms)) for j in (-1, *range(max(0, i - 6), i))]
    assert list(zip(steps.atom.tolist(), steps.earlier.tolist(), strict=True)) == expected
    types, bonds = (part.detach() for part in flow._predict(atoms, orders, steps))
    of_types, of_bonds = iter(types), iter(bonds)
    for i, j in expected:
        own = next(of_types) if j < 0 else next(of_bonds)
        cut = torch.zeros_like(orders[:, : i + 1, : i + 1])
        for a, b, order in graph.bonds:
            if a < i or (a == i and b < j):
                cut[0, a, b] = cut[0, b, a] = order
        step = Steps(*(torch.tensor([each]) for each in (0, i, j)))
        alone = flow._predict(atoms[:, : i + 1], cut, step)[0 if j < 0 else 1][0].detach()
        torch.testing.assert_close(alone, own, atol=1e-5, rtol=1e-5)


def test_the_density_is_a_product_of_normals(flow):
    torch.manual_seed(5)
    value = flow.log_prob(SMILES[:1])
    torch.manual_seed(5)
    x = packed([graph_of(SMILES[0], "bfs")], SPEC)
    atoms, orders = _dense(x, SPEC.max_atoms)
    steps = flow._steps((atoms > 0).sum(1))
    parameters = flow._predict(atoms, orders, steps)
    total = 0.0
    kinds = atoms[0].long() - 1
    bonds = orders[0][steps.atom, steps.earlier.clamp_min(0)][steps.earlier >= 0].long()
    for values, of in zip((kinds, bonds), parameters, strict=True):
        y = torch.nn.functional.one_hot(values, of.shape[1])
        y = y + 0.9 * torch.rand(y.shape)
        mean, log_deviation = of[..., 0], of[..., 1] / (1 + of[..., 1].abs() / 5)
        total = total + torch.distributions.Normal(mean, log_deviation.exp()).log_prob(y).sum()
    torch.testing.assert_close(value[0], total, atol=1e-3, rtol=1e-4)
    assert flow.likelihood == "density"


def test_molecules_of_a_batch_do_not_see_each_other(flow):
    x = packed([graph_of(smiles, "bfs") for smiles in SMILES], SPEC)
    atoms, orders = _dense(x, SPEC.max_atoms)
    steps = flow._steps((atoms > 0).sum(1))
    together = flow._predict(atoms, orders, steps)
    first = atoms[:1, :3], orders[:1, :3, :3]
    alone = flow._predict(*first, flow._steps(torch.tensor([3])))
    for mine, theirs, decided in zip(alone, together, (steps.earlier < 0, steps.earlier >= 0), strict=True):
        theirs = theirs[steps.molecule[decided] == 0]
        torch.testing.assert_close(mine, theirs[: len(mine)], atol=1e-5, rtol=1e-5)


def test_samples(flow):
    masked = flow.sample(60, seed=0)
    assert all(each.valid_raw for each in masked)
    assert [each.graph for each in masked] == [each.graph for each in flow.sample(60, seed=0)]
    assert [each.graph for each in masked] == [each.graph for each in flow.sample(60, seed=0, batch_size=7)]
    assert [each.graph for each in masked] != [each.graph for each in flow.sample(60, seed=1)]
    assert all(math.isnan(each.log_prob) for each in masked)
    raw = flow.sample(60, masks=False, temperature=1.0)
    assert 0 < sum(each.valid_raw for each in raw) < 60
    for each in (*masked, *raw):
        assert all(any(i == atom for i, _, _ in each.graph.bonds) for atom in range(1, len(each.graph.atoms)))


def test_samples_of_any_generator_end_early_in_small_batches(flow):
    """Seeds of 62 bits, and batches whose molecules have all ended before the largest size."""
    for seed in range(8):
        drawn = flow.sample(2, generator=torch.Generator().manual_seed(seed), batch_size=1)
        assert all(each.valid_raw for each in drawn)


def test_what_the_publication_has_not_is_refused(flow):
    for call in (
        lambda: flow.sample(1, fragment="C*"),
        lambda: flow.sample(1, min_atoms=3),
    ):
        with pytest.raises(UserError, match="as published"):
            call()
    with pytest.raises(UserError, match=r"GraphAF has no encode: check flow\.has_latents"):
        flow.encode(["C"])
    with pytest.raises(UserError, match=r"GraphAF has no sample_with_log_prob: check flow\.scores_samples"):
        flow.sample_with_log_prob(2)
    with pytest.raises(UserError, match="set look_back=6"):
        GraphAF(SPEC.as_dict(), look_back=3)


def test_training_sampling_and_evaluating(tmp_path):
    store = tmp_path / "bfs.h5"
    prepare("nci", store, max_atoms=6, order="bfs", workers=1)
    words = ["--config", "graphaf_zinc250k", "--data.store", str(store), "--out", str(tmp_path / "run")]
    words += ["--model.flow.init_args.width", "8", "--trainer.max_steps", "8", "--trainer.max_epochs", "-1"]
    command(train)([*words, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"])
    assert isinstance(GraphFlow.from_pretrained(tmp_path / "run" / "model"), GraphAF)
    command(sample)(
        ["--model", str(tmp_path / "run"), "--out", str(tmp_path / "a.csv"), "--count", "5", "--workers", "1"]
    )
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 6
    words = ["--model", str(tmp_path / "run"), "--store", str(store), "--out", str(tmp_path / "r.json")]
    command(evaluate)([*words, "--samples", "20", "--fcd", "false", "--workers", "1"])
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["nats_per_molecule"]["kind"] == "density"
    assert result["validity"]["masked"]["value"] == 1
    assert "round_trip" not in result
