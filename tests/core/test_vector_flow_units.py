"""Flows over vectors in the units of their data."""

import math

import pytest
import torch

from arflows.core import flows
from arflows.core.inversion import SOLVERS

SCALE, SHIFT = torch.tensor([1e-3, 40.0]), torch.tensor([5.0, -2e3])


def normal(count: int = 4096) -> torch.Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [flows.MAF, flows.MADE, flows.IAF, flows.NSF, flows.RealNVP, flows.NSFC])
def test_an_initialised_flow_is_the_normal_density_with_the_moments_of_the_data(kind):
    x = normal() * SCALE + SHIFT
    flow = kind(2, hidden_features=(8,)).eval()
    flow.initialize(x)
    expected = torch.distributions.Normal(x.mean(0), x.std(0)).log_prob(x).sum(1)
    # batch normalisation, where there is some, has an epsilon
    torch.testing.assert_close(flow.log_prob(x), expected, atol=3e-3, rtol=1e-3)
    samples = flow.sample(20_000, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(samples.mean(0), SHIFT, atol=0.05 * SCALE.max().item(), rtol=1e-3)
    torch.testing.assert_close(samples.std(0), SCALE, atol=0, rtol=0.05)


def test_units_are_saved_with_the_model(tmp_path):
    x = normal() * SCALE + SHIFT
    flow = flows.NSF(2, context=1, hidden_features=(8,)).eval()
    flow.initialize(x, 1e5 + x[:, :1])
    flow.save_pretrained(tmp_path)
    again = flows.VectorFlow.from_pretrained(tmp_path)
    assert torch.equal(flow.log_prob(x, 1e5 + x[:, :1]), again.log_prob(x, 1e5 + x[:, :1]))
    assert again.log_prob(x[:1], x[:1, :1]).item() > math.log(1 / (2 * math.pi * SCALE.prod())) - 20


def test_networks_see_standardised_context():
    context = 1e3 + 0.1 * normal()
    flow = flows.MAF(2, context=2, hidden_features=(8,))
    flow.initialize(normal(), context)
    seen = flow.context_encoder(context)
    torch.testing.assert_close(seen.mean(0), torch.zeros(2), atol=1e-2, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.ones(2), atol=1e-2, rtol=0)


def test_solvers_by_name_agree():
    flow = flows.MAF(5, hidden_features=(16,), transforms=2).eval()
    torch.manual_seed(0)
    for parameter in flow.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    drawn = [flow.sample(8, generator=torch.Generator().manual_seed(0), solver=solver()) for solver in SOLVERS.values()]
    for other in drawn[1:]:
        torch.testing.assert_close(other, drawn[0], atol=1e-3, rtol=1e-3)
