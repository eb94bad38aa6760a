"""Shapes of batches and samples of flows over vectors, and gradients of samples."""

import pytest
import torch

from arflows.core import flows
from arflows.core.runtime.errors import UserError
from tests.core.test_flows import every_flow, make

pytestmark = pytest.mark.report


@every_flow
def test_batches_of_several_dimensions(name):
    flow = make(name, features=3, context=2)
    x, context = torch.randn(4, 5, 3, dtype=torch.float64), torch.randn(4, 5, 2, dtype=torch.float64)
    with torch.no_grad():
        flat = flow.log_prob(x.reshape(20, 3), context.reshape(20, 2))
        torch.testing.assert_close(flow.log_prob(x, context), flat.reshape(4, 5))
        one = flow.log_prob(x, context[:1, :1])
        torch.testing.assert_close(flow.log_prob(x, context[0, 0]), one)
        torch.testing.assert_close(one[2], flow.log_prob(x[2], context[0, :1]))
        # every example under every context
        grid = flow.log_prob(x[0][:, None], context[0])
        assert grid.shape == (5, 5)
        torch.testing.assert_close(grid.diagonal(), flow.log_prob(x[0], context[0]))
        torch.testing.assert_close(grid[2], flow.log_prob(x[0, 2:3].expand(5, -1), context[0]))


@every_flow
def test_samples_by_shape_and_by_context(name):
    flow = make(name, features=3, context=2)
    context = torch.randn(10, 2, dtype=torch.float64)
    source = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    drawn = flow.sample((4, 5), context[:1], generator=source())
    assert drawn.shape == (4, 5, 3)
    torch.testing.assert_close(drawn.flatten(0, 1), flow.sample(20, context[:1], generator=source()))
    each, log_prob = flow.sample_with_log_prob(7, context, per_context=True, generator=source())
    assert (each.shape, log_prob.shape) == ((7, 10, 3), (7, 10))
    rows = context.expand(7, 10, 2)
    with torch.no_grad():
        torch.testing.assert_close(log_prob, flow.log_prob(each, context), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(each.flatten(0, 1), flow.sample(70, rows.flatten(0, 1), generator=source()))
    assert flow.sample((2, 3), context.reshape(2, 5, 2), per_context=True).shape == (2, 3, 2, 5, 3)
    assert make(name, features=3).sample((2, 3)).shape == (2, 3, 3)


@every_flow
def test_gradients_of_samples_reach_parameters_and_context(name):
    flow = make(name, features=3, context=2, scale=0.1)
    context = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    parameter = next(p for p in reversed(list(flow.parameters())) if p.requires_grad)

    def loss():
        x, log_prob = flow.rsample_with_log_prob(6, context, generator=torch.Generator().manual_seed(0))
        return (x.square().sum(1) + 0.3 * log_prob).sum()

    of_parameter, of_context = torch.autograd.grad(loss(), [parameter, context])
    step = 1e-5
    for values, gradient in ((parameter, of_parameter), (context, of_context)):
        direction = torch.randn(values.shape, dtype=values.dtype, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            values += step * direction
            above = loss()
            values -= 2 * step * direction
            below = loss()
            values += step * direction
        torch.testing.assert_close((gradient * direction).sum(), (above - below) / (2 * step), atol=1e-5, rtol=1e-4)
    assert flow.rsample(2, context[:2]).requires_grad
    assert not flow.sample(2, context[:2]).requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.sample(7, torch.zeros(10, 2)), "per_context=True draws as many for each row"),
        (lambda f: f.sample((2, 0), torch.zeros(1, 2)), "at least 1"),
        (lambda f: f.sample((), torch.zeros(1, 2)), "at least 1"),
        (lambda f: f.log_prob(torch.zeros(2, 3, 3), torch.zeros(4, 3, 2)), r"\(2, 3\) of x and \(4, 3\) of context"),
        (lambda f: flows.MAF(3).sample(2, per_context=True), "no meaning without context"),
    ],
)
def test_shapes_that_do_not_fit(call, message):
    with pytest.raises(UserError, match=message):
        call(flows.MAF(3, context=2, hidden_features=(8,)))
