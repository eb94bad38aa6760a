"""CausalStack: both ways of computing it, its gradients, its causality."""

import torch

from arflows.core.conditioners import causal_stack
from arflows.core.conditioners.causal_stack import CausalStack


def built(dtype=torch.float64) -> tuple[CausalStack, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    stack = CausalStack(5, (1, 2, 4, 16), 3).to(dtype)
    return stack, torch.randn(12, 2, 5, dtype=dtype), torch.randn(4, 2, 3, dtype=dtype)


def test_both_ways_agree_in_values_and_gradients(monkeypatch):
    stack, entry, condition = built()
    results = []
    for by_hand in (True, False):
        monkeypatch.setattr(causal_stack, "fits", lambda *_, by_hand=by_hand: by_hand)
        inputs = [entry.clone().requires_grad_(), condition.clone().requires_grad_(), *stack.parameters()]
        out = stack(*inputs[:2])
        results.append([out, *torch.autograd.grad((out * out.detach().cos()).sum(), inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_those_of_differences():
    stack, entry, condition = built()
    assert torch.autograd.gradcheck(stack, (entry.requires_grad_(), condition.requires_grad_()))


def test_a_state_depends_on_no_later_input_and_on_all_within_reach():
    stack, entry, condition = built()
    jacobian = (
        torch.autograd.functional.jacobian(lambda x: stack(x, condition)[:, 0].sum(1), entry)[:, :, 0].abs().sum(2)
    )
    assert torch.equal(jacobian.triu(1), torch.zeros_like(jacobian))
    assert (jacobian.diagonal(-7) > 0).all()
    assert stack.reach == 23


def test_bfloat16_products_stay_close():
    stack, entry, condition = built(torch.float32)
    exact = stack(entry, condition)
    with torch.autocast("cpu", torch.bfloat16):
        low = stack(entry, condition)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, atol=0.05, rtol=0.05)
    low.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in stack.parameters())
