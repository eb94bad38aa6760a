"""Second derivatives where the first ones are written by hand: right, or an error."""

import pytest
import torch

from arflows.core.bases import StandardNormal
from arflows.core.bijections import Affine, Autoregressive, Chain, Logit, recompute
from arflows.core.conditioners import ShallowCNN, WaveNet
from arflows.core.conditioners.batch_norm import BatchNorm2d
from arflows.core.flow import BijectiveFlow
from tests.core.bijection_cases import vector_coupling

pytestmark = pytest.mark.report


def noisy(module: torch.nn.Module, scale: float = 0.5) -> torch.nn.Module:
    """The module in float64, with noise on its parameters."""
    torch.manual_seed(1)
    for parameter in module.double().parameters():
        parameter.data.add_(scale * torch.randn_like(parameter))
    return module


def hessian_and_penalty(function, x, parameters):
    """The Hessian for the first example, and the gradients of the squared score."""
    hessian = torch.autograd.functional.hessian(lambda v: function(v[None]).sum(), x[0])
    at = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(function(at).sum(), at, create_graph=True)
    gradients = torch.autograd.grad(score.square().sum(), parameters, allow_unused=True)
    return [hessian, *(torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True))]


@pytest.mark.parametrize("context", [0, 2])
def test_recomputed_activations(context):
    couplings = [vector_coupling(4, Affine, swap, context) for swap in (False, True, False)]
    flow = noisy(BijectiveFlow(StandardNormal((4,)), Chain(Logit(0.05), *couplings)))
    x, given = torch.rand(8, 4, dtype=torch.float64), torch.randn(8, context, dtype=torch.float64) if context else None

    def log_prob(x):
        return flow.log_prob(x, None if given is None else given[: len(x)])

    kept = hessian_and_penalty(log_prob, x, list(flow.parameters()))
    recompute(flow)
    for found, expected in zip(hessian_and_penalty(log_prob, x, list(flow.parameters())), kept, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-8 * max(1, float(expected.abs().max())), rtol=1e-8)


def test_recomputed_activations_by_the_context():
    couplings = [vector_coupling(4, Affine, swap, 2) for swap in (False, True)]
    flow = noisy(BijectiveFlow(StandardNormal((4,)), Chain(*couplings)))
    x, context = torch.randn(4, dtype=torch.float64), torch.randn(2, dtype=torch.float64)

    def hessian():
        return torch.autograd.functional.hessian(lambda c: flow.log_prob(x[None], c[None]).sum(), context)

    kept = hessian()
    recompute(flow)
    torch.testing.assert_close(hessian(), kept, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("counted", [False, True])
def test_the_compiled_pass_of_a_wavenet(counted, monkeypatch):
    from arflows.core.conditioners import wavenet_pass

    layer = noisy(Autoregressive(Affine(), WaveNet(4, [(1, 1), (1, 2), (2, 1)], order=torch.arange(3))), 0.3)
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    context = torch.tensor([[[3.0, 3, 3, 2, 0]]], dtype=torch.float64).expand(2, -1, -1) if counted else None

    def log_det(x):
        return layer(x, None if context is None else context[: len(x)])[1]

    compiled = hessian_and_penalty(log_det, x, list(layer.parameters()))
    monkeypatch.setattr(wavenet_pass, "fits", lambda *_: False)
    for found, expected in zip(compiled, hessian_and_penalty(log_det, x, list(layer.parameters())), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-8)


def test_the_relu_in_place():
    network = noisy(ShallowCNN(1, 2, 4))
    plain = lambda x: network.output_proj(network.middle(network.input_proj(x).relu()).relu())  # noqa: E731
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    parameters = list(network.parameters())
    found = hessian_and_penalty(lambda v: network(v).square().sum((1, 2, 3)), x, parameters)
    expected = hessian_and_penalty(lambda v: plain(v).square().sum((1, 2, 3)), x, parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_shared_batch_normalisation_says_that_it_has_none(monkeypatch):
    from arflows.core.conditioners import batch_norm

    monkeypatch.setattr(batch_norm, "world_size", lambda: 2)
    monkeypatch.setattr(batch_norm.distributed, "all_reduce", lambda tensor: None)
    norm = BatchNorm2d(2).train()
    x = torch.randn(3, 2, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_compiled_pass_of_a_causal_stack(monkeypatch):
    from arflows.core.conditioners import causal_stack

    stack = noisy(causal_stack.CausalStack(3, (1, 2, 8), 2), 0.1)
    condition = torch.randn(2, 1, 2, dtype=torch.float64)
    x = torch.randn(2, 6, 1, 3, dtype=torch.float64)

    def value(x):
        return torch.stack([stack(each, condition).square().sum() for each in x])

    compiled = hessian_and_penalty(value, x, list(stack.parameters()))
    monkeypatch.setattr(causal_stack, "fits", lambda *_: False)
    for found, expected in zip(compiled, hessian_and_penalty(value, x, list(stack.parameters())), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-8)
