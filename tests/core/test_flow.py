"""Flows, base densities and dequantisation."""

import itertools
import math

import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform

from arflows.core.bases import DiagonalNormal, StandardNormal, Uniform
from arflows.core.bijections import (
    Affine,
    Bijection,
    Chain,
    Inverse,
    Logit,
    Permutation,
    Pointwise,
    RationalQuadraticSpline,
)
from arflows.core.dequantization import UniformDequantizer
from arflows.core.flow import BijectiveFlow
from arflows.core.runtime.errors import UserError

from .bijection_cases import vector_coupling


def randomized(flow: BijectiveFlow, scale: float = 0.5, seed: int = 0) -> BijectiveFlow:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return flow.double().eval()


def line_flows() -> dict[str, tuple[Bijection, int]]:
    return {
        "affine": (Pointwise(Affine(), (1,)), 1),
        "spline": (Pointwise(RationalQuadraticSpline(), (1,)), 1),
        "planar_coupling": (
            Chain(vector_coupling(2, Affine), Permutation(torch.tensor([1, 0])), vector_coupling(2, Affine)),
            2,
        ),
        "planar_spline_coupling": (
            Chain(
                vector_coupling(2, RationalQuadraticSpline),
                vector_coupling(2, RationalQuadraticSpline, swap=True),
            ),
            2,
        ),
    }


@pytest.mark.parametrize("name", line_flows())
def test_densities_integrate_to_one(name: str):
    bijection, dims = line_flows()[name]
    flow = randomized(BijectiveFlow(DiagonalNormal((dims,)), bijection), scale=0.3)
    axis = torch.linspace(-30, 30, 60_001 if dims == 1 else 2_001, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * dims).reshape(-1, dims)
    mass = flow.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** dims
    assert mass.item() == pytest.approx(1, abs=1e-3)


def test_log_prob_is_that_of_the_transformed_distribution():
    flow = randomized(BijectiveFlow(StandardNormal((3,)), Pointwise(Affine(), (3,))))
    shift, log_scale = flow.bijection.parameters_of_elements.unbind(-1)
    log_scale = log_scale / (1 + log_scale.abs() / 5)
    normal = Independent(Normal(torch.zeros(3).double(), torch.ones(3).double()), 1)
    # z = x · exp(s) + t, so x = (z − t) · exp(−s).
    reference = TransformedDistribution(normal, AffineTransform(-shift * (-log_scale).exp(), (-log_scale).exp(), 1))
    x = torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(flow.log_prob(x), reference.log_prob(x))


def test_samples_follow_the_density():
    flow = randomized(BijectiveFlow(StandardNormal((1,)), Pointwise(RationalQuadraticSpline(), (1,))), scale=1.0)
    samples = flow.sample(40_000, generator=torch.Generator().manual_seed(0))[:, 0]
    axis = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    cumulative = (flow.log_prob(axis[:, None]).exp() * (axis[1] - axis[0])).cumsum(0)
    empirical = torch.searchsorted(samples.sort().values, axis) / len(samples)
    # Kolmogorov–Smirnov: exceeded with probability 1e-4 at 2.23 / sqrt(n).
    assert (empirical - cumulative).abs().max() < 2.23 / math.sqrt(len(samples))


def test_temperature_scales_the_latents():
    flow = BijectiveFlow(StandardNormal((4,)), Pointwise(Affine(), (4,)))
    cold = flow.sample(3, temperature=0.5, generator=torch.Generator().manual_seed(1))
    warm = flow.sample(3, temperature=1.0, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(cold, 0.5 * warm)


def test_sample_with_log_prob_is_consistent_at_every_temperature():
    flow = randomized(BijectiveFlow(DiagonalNormal((2,)), vector_coupling(2, Affine)))
    x, log_prob = flow.sample_with_log_prob(9, temperature=0.7)
    torch.testing.assert_close(flow.log_prob(x), log_prob)


def test_encode_and_decode_are_inverse():
    flow = randomized(BijectiveFlow(StandardNormal((4,)), vector_coupling(4, RationalQuadraticSpline)))
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(flow.decode(flow.encode(x)), x, atol=1e-9, rtol=0)
    assert flow.round_trip_error(x).max() < 1e-9


def test_a_generator_fixes_the_samples():
    flow = BijectiveFlow(StandardNormal((4,)), Pointwise(Affine(), (4,)))
    draws = [flow.sample(3, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_sampling_leaves_the_mode_as_it_was():
    flow = BijectiveFlow(StandardNormal((4,)), Pointwise(Affine(), (4,))).train()
    flow.sample(1)
    assert flow.training


@pytest.mark.parametrize("base", [StandardNormal((2,)), DiagonalNormal((2,)), DiagonalNormal((2,), 3)], ids=repr)
def test_normal_bases_have_the_density_they_sample(base):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    row = torch.randn(1, 3) if getattr(base, "from_context", None) is not None else None
    draws = base.sample(50_000, None if row is None else row.expand(50_000, 3))
    entropy = -base.log_prob(draws, None if row is None else row.expand(50_000, 3)).mean()
    spread = draws.std(0).log().sum() + (1 + math.log(2 * math.pi))
    assert entropy.item() == pytest.approx(spread.item(), abs=0.02)


def test_conditional_base_asks_for_its_context():
    with pytest.raises(ValueError, match="needs a context with 3 features"):
        DiagonalNormal((2,), 3).log_prob(torch.zeros(1, 2))


def test_uniform_base():
    base = Uniform((2,))
    assert base.log_prob(torch.tensor([[0.2, 0.9], [0.2, 1.1]])).tolist() == [0.0, -math.inf]
    draws = base.sample(1000)
    assert draws.min() >= 0
    assert draws.max() <= 1
    with pytest.raises(UserError, match="temperature"):
        base.sample(1, temperature=0.5)


def test_dequantised_identity_is_the_uniform_distribution_exactly():
    flow = BijectiveFlow(Uniform((3,)), Chain(), UniformDequantizer(4))
    x = torch.tensor([[0, 1, 3]], dtype=torch.uint8)
    assert flow.log_prob(x).item() == pytest.approx(-3 * math.log(4))
    assert flow.likelihood == "bound"
    assert BijectiveFlow(Uniform((3,)), Chain()).likelihood == "density"


def test_the_bound_holds_over_all_integers():
    """Probabilities by the bound sum to at most 1, and by averaging the density over the cells to 1."""
    levels = 4
    bijection = Chain(Logit(0.05), vector_coupling(2, Affine))
    flow = randomized(BijectiveFlow(StandardNormal((2,)), bijection, UniformDequantizer(levels)))
    images = torch.tensor(list(itertools.product(range(levels), repeat=2)))
    repeats = images.repeat_interleave(4_000, 0)
    torch.manual_seed(0)
    log_prob = flow.log_prob(repeats).reshape(len(images), -1)
    bound = log_prob.mean(1).exp().sum()
    average = log_prob.exp().mean(1).sum()
    inside = flow.sample(20_000)  # what the model puts outside the unit square belongs to no cell
    assert inside.dtype == torch.uint8
    y, _ = flow.bijection.inverse(flow.base.sample(200_000))
    mass_inside = ((y >= 0) & (y <= 1)).all(1).double().mean()
    assert bound < average
    assert average.item() == pytest.approx(mass_inside.item(), abs=0.02)


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
def test_dequantisation_goes_back_to_the_same_integers(levels: int):
    dequantizer = UniformDequantizer(levels)
    x = torch.arange(levels).reshape(1, -1)
    noisy, log_cell = dequantizer(x)
    assert log_cell == pytest.approx(-levels * math.log(levels))
    if levels <= 256:
        assert dequantizer.quantize(noisy).dtype == torch.uint8
        assert torch.equal(dequantizer.quantize(noisy).long(), x)
    assert torch.equal(dequantizer.quantize(dequantizer.midpoint(x)).long(), x)


def test_quantisation_clips_what_lies_outside():
    far = torch.tensor([[-0.3, 1.0, 7.0]])
    assert UniformDequantizer(256).quantize(far).tolist() == [[0, 255, 255]]


def test_iaf_direction_swaps():
    forward = randomized(BijectiveFlow(StandardNormal((2,)), vector_coupling(2, Affine)))
    backward = BijectiveFlow(StandardNormal((2,)), Inverse(forward.bijection)).double()
    z = torch.randn(3, 2, dtype=torch.float64)
    torch.testing.assert_close(backward.decode(z), forward.encode(z))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "at least 1"),
        ({"count": 2, "temperature": 0.0}, "greater than 0"),
        ({"count": 2, "temperature": math.nan}, "greater than 0"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict, message: str):
    with pytest.raises(UserError, match=message):
        BijectiveFlow(StandardNormal((4,)), Chain()).sample(**arguments)
