"""Learned dequantisation: a bound that training tightens, on a model small enough to enumerate."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from arflows.core.bases import StandardNormal
from arflows.core.bijections import Affine, Chain, ChannelMask, Coupling, LogisticMixture, Logit
from arflows.core.dequantization import UniformDequantizer, VariationalDequantizer
from arflows.core.flow import BijectiveFlow
from arflows.core.likelihood import Estimate, dequantization, log_probs

from .bijection_cases import vector_coupling

LEVELS = 4
IMAGES = torch.tensor(list(itertools.product(range(LEVELS), repeat=2)), dtype=torch.uint8)


class Conditional(nn.Module):
    """A network of the kept number and the context; starts at zero as conditioners do."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(1 + 4, 32), nn.Linear(32, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.last(torch.tanh(self.hidden(torch.cat([x, context], 1))))


@pytest.fixture
def flow() -> BijectiveFlow:
    """A density of two numbers, far from constant inside the cells, with learned dequantisation that starts uniform."""
    torch.manual_seed(0)
    bijection = Chain(Logit(0.05), vector_coupling(2, Affine), vector_coupling(2, Affine, swap=True))
    with torch.no_grad():
        for parameter in bijection.parameters():
            parameter.add_(0.35 * torch.randn_like(parameter))
    noise = [
        Coupling(ChannelMask(2, swap), elementwise, Conditional(elementwise.parameter_count))
        for swap, elementwise in [(False, Affine()), (True, LogisticMixture(1)), (False, Affine()), (True, Affine())]
    ]
    dequantizer = VariationalDequantizer(Chain(*noise), nn.Sequential(nn.Linear(2, 4), nn.Tanh()), LEVELS)
    return BijectiveFlow(StandardNormal((2,)), bijection, dequantizer).double()


def disturb(flow: BijectiveFlow) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in flow.dequantizer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def exact(flow: BijectiveFlow, grid: int = 200) -> Tensor:
    """Log-probability of every image: the density integrated over its cell."""
    middles = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    points = (IMAGES.double()[:, None] + torch.cartesian_prod(middles, middles)) / LEVELS
    density = torch.stack([BijectiveFlow(flow.base, flow.bijection).log_prob(p) for p in points]).logsumexp(1)
    return (density - math.log(grid**2) - 2 * math.log(LEVELS)).detach()


@torch.no_grad()
def bound(flow: BijectiveFlow, draws: int = 20_000) -> tuple[Tensor, Tensor]:
    """Mean of log p(x + u) − log q(u|x) over draws, and the logarithm of the mean of its exponential."""
    torch.manual_seed(2)
    values = flow.log_prob(IMAGES.repeat_interleave(draws, 0)).reshape(len(IMAGES), draws)
    return values.mean(1), values.logsumexp(1) - math.log(draws)


def test_with_the_identity_it_is_uniform_dequantisation(flow: BijectiveFlow):
    torch.manual_seed(0)
    expected, log_cell = UniformDequantizer(LEVELS).double()(IMAGES)
    torch.manual_seed(0)
    y, log_volume = flow.dequantizer(IMAGES)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(log_volume, torch.full((len(IMAGES),), log_cell, dtype=torch.float64))


def test_the_bound_lies_below_the_probability_and_importance_weights_reach_it(flow: BijectiveFlow):
    disturb(flow)
    mean, weighted = bound(flow)
    truth = exact(flow)
    assert (mean < truth - 0.1).all()
    torch.testing.assert_close(weighted, truth, atol=0.1, rtol=0)


def test_training_the_noise_tightens_the_bound(flow: BijectiveFlow):
    truth, (before, _) = exact(flow), bound(flow)
    optimizer = torch.optim.Adam(flow.dequantizer.parameters(), 0.01)
    for _ in range(400):
        loss = -flow.log_prob(IMAGES.repeat(16, 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after, _ = bound(flow)
    assert (truth - after).mean() < 0.5 * (truth - before).mean()
    assert (after < truth + 0.01).all()


def test_noise_stays_in_its_cell(flow: BijectiveFlow):
    disturb(flow)
    x = IMAGES.repeat(500, 1)
    y, log_volume = flow.dequantizer(x)
    assert torch.equal(flow.dequantizer.quantize(y), x)
    assert log_volume.shape == (len(x),)
    assert torch.equal(flow.dequantizer.quantize(flow.dequantizer.midpoint(x)), x)


def test_figures_name_it(flow: BijectiveFlow):
    log_prob = log_probs(flow, [{"x": IMAGES}], draws=3)
    figure = Estimate.of(log_prob, flow.dims, flow.likelihood, dequantization(flow, 3))
    assert "upper bound by variational dequantisation, 3 draws" in str(figure)


def test_nothing_is_dequantised_to_nothing(flow: BijectiveFlow):
    y, log_volume = flow.dequantizer(IMAGES[:0])
    assert y.shape == (0, 2)
    assert log_volume.shape == (0,)
