"""Histograms as maps of an interval, and categorical data by them."""

import math

import pytest
import torch

from arflows.core.bases import Uniform
from arflows.core.bijections import PiecewiseLinearCDF, Pointwise
from arflows.core.dequantization import UniformDequantizer
from arflows.core.flow import BijectiveFlow


def test_the_dequantisation_bound_of_categories_is_exact():
    flow = BijectiveFlow(Uniform((2,)), Pointwise(PiecewiseLinearCDF(5), (2,)), UniformDequantizer(5)).double()
    with torch.no_grad():
        flow.bijection.parameters_of_elements.normal_(generator=torch.Generator().manual_seed(0))
    log_probabilities = flow.bijection.parameters_of_elements.log_softmax(-1)
    x = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    expected = log_probabilities[0, x[:, 0]] + log_probabilities[1, x[:, 1]]
    for _ in range(3):  # whatever the noise
        torch.testing.assert_close(flow.log_prob(x), expected, atol=1e-12, rtol=0)
    samples = flow.sample(20_000, generator=torch.Generator().manual_seed(1))[:, 0].long()
    frequencies = samples.bincount(minlength=5) / len(samples)
    torch.testing.assert_close(frequencies.double(), log_probabilities[0].exp().detach(), atol=0.02, rtol=0)


@pytest.mark.parametrize("upper", [1.0, 4.0])
def test_density_integrates_to_one(upper: float):
    x = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000 * upper
    logits = torch.tensor([0.3, -5.0, 2.0, -40.0], dtype=torch.float64).expand(4000, 4)
    z, log_derivative = PiecewiseLinearCDF(4, upper)(x, logits)
    assert z.min() >= 0
    assert z.max() <= 1
    assert log_derivative.exp().mean().item() * upper == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("forbidden", [[0, 1], [2, 3], [5, 6], [0, 3, 6]])
def test_the_inverse_never_lands_in_a_forbidden_bin(dtype, forbidden):
    bins = 7
    generator = torch.Generator().manual_seed(0)
    z = torch.cat([torch.rand(5000, generator=generator, dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype)])
    z = torch.cat([z, torch.nextafter(torch.ones(1, dtype=dtype), torch.zeros(1, dtype=dtype))])
    logits = torch.randn(len(z), bins, generator=generator, dtype=dtype)
    logits[:, forbidden] = -math.inf
    elementwise = PiecewiseLinearCDF(bins, upper=float(bins))
    x, log_derivative = elementwise.inverse(z, logits)
    assert log_derivative.isfinite().all()
    assert not torch.isin(x.floor().long(), torch.tensor(forbidden)).any()
    # The ends of every bin too, where rounding decides.
    ends, _ = elementwise(
        torch.arange(bins, dtype=dtype)[:, None].expand(bins, len(z)).flatten(), logits.repeat(bins, 1)
    )
    x, _ = elementwise.inverse(ends, logits.repeat(bins, 1))
    assert not torch.isin(x.floor().long(), torch.tensor(forbidden)).any()


def test_a_forbidden_bin_has_no_probability_and_leaves_gradients_finite():
    logits = torch.tensor([[0.5, -math.inf, 0.1]], dtype=torch.float64, requires_grad=True)
    elementwise = PiecewiseLinearCDF(3)
    assert elementwise(torch.tensor([0.5], dtype=torch.float64), logits)[1].item() == -math.inf
    z, log_derivative = elementwise(torch.tensor([0.9], dtype=torch.float64), logits)
    (gradient,) = torch.autograd.grad((z + log_derivative).sum(), logits)
    assert gradient.isfinite().all()
    assert gradient[0, 1] == 0
    x, log_derivative = elementwise.inverse(z.detach(), logits)
    (gradient,) = torch.autograd.grad((x + log_derivative).sum(), logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_collapsed_bins_are_finite_with_their_gradients(direction):
    logits = torch.tensor([200.0, -200.0, 0.0, -80.0], requires_grad=True)
    values = torch.linspace(0, 1, 41, requires_grad=True)
    output, log_derivative = getattr(PiecewiseLinearCDF(4), direction)(values, logits.expand(41, 4))
    assert output.isfinite().all()
    assert log_derivative.isfinite().all()
    for gradient in torch.autograd.grad(output.sum() + log_derivative.sum(), [values, logits]):
        assert gradient.isfinite().all()


def test_gradients_of_both_directions():
    logits = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values = torch.tensor([-0.3, 0.11, 0.37, 0.52, 0.95, 1.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(PiecewiseLinearCDF(5), (values, logits))
    assert torch.autograd.gradcheck(PiecewiseLinearCDF(5).inverse, (values, logits))


def test_no_bins_are_refused():
    with pytest.raises(ValueError, match="at least 1 bin"):
        PiecewiseLinearCDF(0)
