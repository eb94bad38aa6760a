import json
import math

import numpy as np
import pytest
import torch

from arflows.core.bases import StandardNormal
from arflows.core.bijections import Logit
from arflows.core.dequantization import UniformDequantizer
from arflows.core.flow import BijectiveFlow
from arflows.core.likelihood import Estimate, Reference, bits_per_dim, dequantization, log_probs
from arflows.core.runtime.errors import UserError


@pytest.fixture
def flow():
    """Of two integers in 0…3, with a density far from constant inside each cell."""
    return BijectiveFlow(StandardNormal((2,)), Logit(0.05), UniformDequantizer(levels=4))


def batches(count=6, size=2):
    x = torch.arange(count * 2).view(count, 2) // 3
    return [{"x": part} for part in x.to(torch.uint8).split(size)]


def exact_log_prob(flow, x, grid=200):
    """The log-probability of the integers themselves: the density integrated over their cells."""
    middles = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    offsets = torch.cartesian_prod(middles, middles)
    points = (x.double()[:, None] + offsets) / 4
    flow = BijectiveFlow(flow.base.double(), flow.bijection.double())
    density = torch.stack([flow.log_prob(p) for p in points]).logsumexp(1)
    return density - math.log(grid**2) - 2 * math.log(4)


def test_a_uniform_distribution_of_8_bit_pixels_takes_8_bits_per_dim():
    log_prob = torch.tensor([-12 * math.log(256), 0.0, 12 * math.log(2)])
    torch.testing.assert_close(bits_per_dim(log_prob, 12), torch.tensor([8.0, 0.0, -1.0]))


def test_figure_is_the_mean_with_its_standard_error():
    log_prob = -math.log(2) * 10 * torch.tensor([1.0, 2.0, 3.0, 4.0])
    figure = Estimate.of(log_prob, 10, "bound", "uniform dequantisation, 1 draw")
    assert figure.value == pytest.approx(2.5)
    assert figure.standard_error == pytest.approx(math.sqrt(5 / 3) / 2)
    assert str(figure) == (
        "2.5000 ± 0.6455 (s.e.) bits/dim, upper bound by uniform dequantisation, 1 draw, over 4 examples"
    )
    assert json.loads(json.dumps(figure.as_dict()))["kind"] == "bound"


def test_figure_without_dims_is_in_nats_and_says_what_it_is():
    figure = Estimate.of(torch.tensor([3.0]), None, "density")
    assert figure.value == -3.0
    assert math.isnan(figure.standard_error)
    assert str(figure) == "log-likelihood 3.0000 nats, density of continuous data, over 1 example"
    assert figure.as_dict()["quantity"] == "negative log-likelihood"


def test_figure_of_nothing_is_refused():
    with pytest.raises(UserError, match="no example"):
        Estimate.of(torch.empty(0), 3, "exact")


def test_figures_are_accumulated_in_double_precision():
    log_prob = torch.full((200_001,), -1e4) - torch.rand(200_001)
    assert Estimate.of(log_prob, None, "exact").value == pytest.approx(-log_prob.double().mean().item(), rel=1e-12)


def test_dequantization_is_named(flow):
    assert dequantization(flow) == "uniform dequantisation, 1 draw"
    assert dequantization(flow, 5) == "uniform dequantisation, 5 draws"
    assert dequantization(BijectiveFlow(StandardNormal((2,)), Logit(0.05))) == ""


def test_log_probs_are_repeatable_in_order_and_leave_the_mode_alone(flow):
    flow.train()
    scores = log_probs(flow, batches(), seed=1)
    assert scores.dtype == torch.float64
    assert flow.training
    torch.testing.assert_close(log_probs(flow, iter(batches()), seed=1), scores, rtol=0, atol=0)
    assert not torch.equal(log_probs(flow, batches(), seed=2), scores)
    exact = exact_log_prob(flow, torch.cat([batch["x"] for batch in batches()]))
    bound = torch.stack([log_probs(flow, batches(), seed=seed) for seed in range(100)]).mean(0)
    assert exact.max() - exact.min() > 1.0  # so that a wrong order would show
    torch.testing.assert_close(bound, exact, rtol=0, atol=0.5)


def test_more_draws_tighten_the_bound_towards_the_exact_probability(flow):
    repeated = [{"x": torch.tensor([[0, 3]], dtype=torch.uint8).expand(2000, 2)}]
    exact = exact_log_prob(flow, repeated[0]["x"][:1]).item()
    means = [log_probs(flow, repeated, draws=draws).mean().item() for draws in (1, 4, 64)]
    assert means[0] < means[1] < means[2] < exact + 1e-3
    assert means[2] == pytest.approx(exact, abs=0.01)
    assert exact - means[0] > 0.02


@pytest.mark.parametrize(("draws", "continuous"), [(0, False), (2, True)])
def test_senseless_draws_are_refused(flow, draws, continuous):
    if continuous:
        flow.dequantizer = None
    with pytest.raises(UserError, match="draws"):
        log_probs(flow, batches(), draws=draws)


def test_percentiles_count_likelier_training_examples():
    reference = Reference.of(torch.tensor([3.0, 1.0, 2.0, 2.0]))
    np.testing.assert_allclose(reference.percentile(np.array([0.5, 1.0, 2.0, 2.5, 9.0])), [0, 12.5, 50, 75, 100])


def test_typicality_finds_the_too_likely_as_well_as_the_too_unlikely():
    reference = Reference.of(torch.tensor([1.0, 3.0]))
    np.testing.assert_allclose(reference.typicality(np.array([[2.0], [0.5], [3.5]])), [0, 1.5, 1.5])
    assert reference.typicality(np.array([0.5, 3.5])) == pytest.approx(0.0)  # a group, judged together


def test_reference_survives_its_file(tmp_path):
    path = tmp_path / "training.json"
    assert Reference.load(tmp_path) is None
    reference = Reference.of(torch.rand(50))
    path.write_text(json.dumps({"train_scores": reference.as_dict()}))
    loaded = Reference.load(tmp_path)
    assert loaded is not None
    np.testing.assert_allclose(loaded.scores, reference.scores, rtol=1e-5)
    assert loaded.mean == reference.mean


@pytest.mark.parametrize("text", ["{", "{}", '{"train_scores": 3}', '{"train_scores": {"mean": 1, "sample": ["a"]}}'])
def test_damaged_reference_names_its_file(tmp_path, text):
    path = tmp_path / "training.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"training\.json"):
        Reference.load(tmp_path)
