"""Distribution functions of mixtures as maps of the line."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from arflows.core.bases import StandardNormal
from arflows.core.bijections import ChannelMask, Coupling, GaussianMixture, LogisticMixture, MixtureCDF, Pointwise
from arflows.core.conditioners import MLP
from arflows.core.flow import BijectiveFlow

both_families = pytest.mark.parametrize("family", [LogisticMixture, GaussianMixture])


def parameters(count: int, components: int, scale: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(count, 3 * components, generator=generator, dtype=dtype)


def logistic_log_prob(z: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.logsigmoid(z) + torch.nn.functional.logsigmoid(-z)


def test_a_gaussian_mixture_under_a_normal_base_is_the_mixture():
    bijection = Pointwise(GaussianMixture(3), (1,)).double()
    with torch.no_grad():
        bijection.parameters_of_elements.copy_(parameters(1, 3, 1.0))
    logits, means, raw = bijection.parameters_of_elements.detach()[0].chunk(3)
    scales = (raw / (1 + raw.abs() / 7)).exp()
    mixture = MixtureSameFamily(Categorical(logits=logits), Normal(means, scales))
    x = torch.linspace(-40, 40, 801, dtype=torch.float64)
    got = BijectiveFlow(StandardNormal((1,)), bijection).double().log_prob(x[:, None])
    torch.testing.assert_close(got, mixture.log_prob(x), rtol=1e-9, atol=1e-9)


@both_families
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_densities_integrate_to_one(family: type[MixtureCDF], scale: float):
    log_prob = logistic_log_prob if family is LogisticMixture else Normal(0.0, 1.0).log_prob
    # Where an element's scales are small the grid must be fine, where they are large it must be wide.
    x = torch.linspace(-800, 800, 400_001, dtype=torch.float64)
    raw = parameters(1, 4, scale).clamp(-3, 3)
    z, log_derivative = family(4, spread=1.0)(x, raw.expand(len(x), -1))
    mass = (log_prob(z) + log_derivative).exp().sum() * (x[1] - x[0])
    assert mass.item() == pytest.approx(1, abs=1e-3)


@both_families
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("size", [1.0, 10.0, 1e3, 1e6])
@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_the_inverse_is_as_precise_as_the_numbers(family, dtype, tolerance, size, scale):
    z = size * torch.randn(3000, generator=torch.Generator().manual_seed(1), dtype=dtype)
    raw = parameters(3000, 6, scale, dtype)
    x, log_derivative = family(6, spread=1.0).inverse(z, raw)
    back, forward_log_derivative = family(6, spread=1.0)(x, raw)
    # How far x is from the root, seen through the slope there.
    error = (back - z).abs() * (-forward_log_derivative).exp() / (1 + x.abs())
    assert error.max() <= tolerance
    torch.testing.assert_close(log_derivative, -forward_log_derivative)


@both_families
def test_the_inverse_converges_at_the_bounds_of_the_scales(family):
    """Components like steps, far apart, beside broad ones: Newton's method alone runs away from here."""
    raw = parameters(500, 8, 1e4)
    z = torch.linspace(-12, 12, 500, dtype=torch.float64)
    x, _ = family(8).inverse(z, raw)
    back, log_derivative = family(8)(x, raw)
    assert ((back - z).abs() * (-log_derivative).exp() / (1 + x.abs())).max() <= 1e-12


@both_families
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_both_tails_are_as_good_in_float32(family, scale):
    raw = parameters(4, 3, scale).float().requires_grad_()
    x = torch.tensor([1e6, -1e6, 1e5, -1e5], requires_grad=True)
    z, log_derivative = family(3)(x, raw)
    wide_z, wide_log_derivative = family(3)(x.detach().double(), raw.detach().double())
    torch.testing.assert_close(z.double(), wide_z, rtol=1e-5, atol=0)
    torch.testing.assert_close(log_derivative.double(), wide_log_derivative, rtol=0, atol=1e-2)
    if scale == 1.0:  # far out the widest component alone counts, and the map is its straight line
        widest = (raw[:, 6:] / (1 + raw[:, 6:].abs() / 7)).amax(-1)
        torch.testing.assert_close(log_derivative, -widest, rtol=0, atol=1e-3)
    for gradient in torch.autograd.grad((z / 1e6).sum() + log_derivative.sum(), [x, raw]):
        assert gradient.isfinite().all()


@both_families
def test_gradients_of_both_directions(family):
    elementwise = family(3, spread=1.0)
    raw = parameters(5, 3, 1.0).requires_grad_()
    values = torch.tensor([-30.0, -1.0, 0.0, 0.4, 30.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(elementwise, (values, raw))
    assert torch.autograd.gradcheck(elementwise.inverse, (values, raw))
    near = values.detach()[1:4].clone().requires_grad_()
    raw_near = raw.detach()[1:4].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(elementwise, (near, raw_near), atol=1e-4)
    assert torch.autograd.gradgradcheck(elementwise.inverse, (near, raw_near), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_normal_quantile_inverts_the_distribution_function(dtype):
    z = torch.cat([torch.linspace(-8, 8, 1001), torch.tensor([-1e6, -1e3, -40.0, 40.0, 1e3, 1e6])]).to(dtype)
    one = torch.zeros(len(z), 3, dtype=dtype)
    torch.testing.assert_close(
        GaussianMixture(1)(z, one)[0],
        z,
        rtol=8 * torch.finfo(dtype).eps,
        atol=1e-6 if dtype is torch.float32 else 1e-14,
    )


def test_equal_components_stay_equal_and_spread_ones_do_not():
    def train(spread: float) -> tuple[float, float]:
        torch.manual_seed(0)
        mixture = LogisticMixture(4, spread)
        flow = BijectiveFlow(
            StandardNormal((2,)),
            Coupling(ChannelMask(2), mixture, MLP(1, mixture.parameter_count, (16,), activation="tanh")),
        )
        optimizer = torch.optim.Adam(flow.parameters(), 0.01)
        for _ in range(200):
            x = torch.randn(128, 2) * 0.2 + torch.tensor([0.0, 2.0]) * torch.randint(-1, 2, (128, 1))
            loss = -flow.log_prob(x).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            means = mixture._mixture(flow.bijection.conditioner(torch.zeros(1, 1)))[1]
        return loss.item(), means.std().item()

    (equal_loss, equal_std), (spread_loss, spread_std) = train(0.0), train(1.0)
    assert equal_std < 1e-4
    assert spread_std > 0.5
    assert spread_loss < equal_loss - 0.3


def test_impossible_mixtures_are_refused():
    for arguments in ((0,), (1, 1.0)):
        with pytest.raises(ValueError, match="at least 1 component"):
            LogisticMixture(*arguments)
    assert math.isclose(LogisticMixture(1)(torch.tensor([3.0]), torch.zeros(1, 3))[0].item(), 3.0, rel_tol=1e-6)
