"""Activations recomputed in the backward pass: the same gradients, less memory."""

import pytest
import torch
from torch import nn

from arflows.core.bases import DiagonalNormal
from arflows.core.bijections import (
    ActNorm,
    Affine,
    BatchNorm,
    Chain,
    ChannelMask,
    Coupling,
    Permutation,
    RationalQuadraticSpline,
    recompute,
)
from arflows.core.flow import BijectiveFlow
from arflows.core.flows import MAF
from arflows.core.training.module import FlowTraining
from tests.core.training.training_runs import Data, assert_same, state, trainer


def coupling(width=6, context=0, dropout=False, elementwise=None, hidden=16):
    mask = ChannelMask(width)
    elementwise = elementwise or Affine(bound=2.0)
    network = Network(width // 2, elementwise.parameter_count * (width - width // 2), context, dropout, hidden)
    return Coupling(mask, elementwise, network)


class Network(nn.Module):
    """A small network that is not zero at the start."""

    def __init__(self, inputs, outputs, context, dropout, hidden):
        super().__init__()
        self.first = nn.Linear(inputs + context, hidden)
        self.dropout = nn.Dropout(0.3 if dropout else 0.0)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, x, context=None):
        x = x if context is None or self.first.in_features == x.shape[1] else torch.cat([x, context], 1)
        return 0.3 * self.last(self.dropout(torch.tanh(self.first(x))))


def deep(depth=4, context=0, **options):
    parts = []
    for _ in range(depth):
        parts += [ActNorm(6), Permutation(torch.tensor([3, 4, 5, 0, 2, 1])), coupling(context=context, **options)]
    return BijectiveFlow(DiagonalNormal((6,)), Chain(*parts))


def gradients(flow, x, context=None, seed=1):
    for parameter in flow.parameters():
        parameter.grad = None
    x = x.clone().requires_grad_()
    context = None if context is None else context.clone().requires_grad_()
    torch.manual_seed(seed)
    log_prob = flow.log_prob(x, context)
    (log_prob * torch.linspace(1, 2, len(x), dtype=x.dtype)).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in flow.named_parameters() if parameter.grad is not None}
    return {"log_prob": log_prob.detach(), "x": x.grad, **found} | (
        {} if context is None else {"context": context.grad}
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"context": 3},
        {"dropout": True},
        {"elementwise": RationalQuadraticSpline(8)},
    ],
    ids=["affine", "context", "dropout", "spline"],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 2e-4)])
def test_gradients_are_those_of_kept_activations(options, dtype, tolerance):
    torch.manual_seed(0)
    flow = deep(**options).to(dtype).train()
    x = torch.randn(16, 6, dtype=dtype)
    context = torch.randn(16, 3, dtype=dtype) if options.get("context") else None
    kept = gradients(flow, x, context)
    recompute(flow)
    anew = gradients(flow, x, context)
    assert kept.keys() == anew.keys()
    for name, expected in kept.items():
        torch.testing.assert_close(anew[name], expected, atol=tolerance * expected.abs().max().item(), rtol=0)
    recompute(flow, False)
    assert_same(gradients(flow, x, context), kept)


def test_frozen_and_shared_parameters():
    torch.manual_seed(0)
    shared = coupling()
    flow = BijectiveFlow(
        DiagonalNormal((6,)), Chain(shared, Permutation(torch.tensor([3, 4, 5, 0, 2, 1])), shared, ActNorm(6))
    )
    flow.double().bijection.bijections[0].conditioner.first.requires_grad_(False)
    x = torch.randn(16, 6, dtype=torch.float64)
    kept = gradients(flow, x)
    recompute(flow)
    anew = gradients(flow, x)
    assert kept.keys() == anew.keys()
    for name, expected in kept.items():
        torch.testing.assert_close(anew[name], expected, atol=1e-10, rtol=1e-10)


def test_batch_normalisation_passes_forward_once():
    torch.manual_seed(0)
    flow = (
        BijectiveFlow(DiagonalNormal((6,)), Chain(coupling(), BatchNorm(6), coupling(), BatchNorm(6))).double().train()
    )
    recompute(flow)
    gradients(flow, torch.randn(16, 6, dtype=torch.float64))
    assert [int(part.batches) for part in flow.modules() if isinstance(part, BatchNorm)] == [1, 1]


def test_autoregressive_flows_pass_forward_again():
    torch.manual_seed(0)
    flow = MAF(4, transforms=2, hidden_features=[16], batch_norm=False).double()
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.2)
    x = torch.randn(8, 4, dtype=torch.float64)
    kept = gradients(flow, x)
    recompute(flow)
    anew = gradients(flow, x)
    for name, expected in kept.items():
        torch.testing.assert_close(anew[name], expected, atol=1e-10, rtol=1e-8)


def test_half_precision_recomputes_in_half_precision():
    torch.manual_seed(0)
    flow = deep().train()
    x = torch.randn(16, 6)
    results = []
    for on in (False, True):
        recompute(flow, on)
        with torch.autocast("cpu", torch.bfloat16):
            results.append(gradients(flow, x))
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, atol=2e-2 * expected.abs().max().item(), rtol=0)


def saved_bytes(flow, x):
    """Storages that autograd keeps for the backward pass, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in flow.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        flow.log_prob(x).sum()
    return sum(nbytes for nbytes, _ in kept.values())


def test_what_is_kept_does_not_grow_with_depth():
    x = torch.randn(64, 6)
    kept, anew = [], []
    for depth in (4, 16):
        flow = deep(depth, hidden=64)
        kept.append(saved_bytes(flow, x))
        recompute(flow)
        anew.append(saved_bytes(flow, x))
    assert kept[1] > 3.5 * kept[0]
    assert anew[1] < 1.1 * anew[0]
    assert anew[1] < kept[0] / 10


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_takes_the_same_steps(accumulate):
    x = torch.randn(64, 6)
    states = []
    for on in (False, True):
        torch.manual_seed(0)
        module = FlowTraining(deep(), learning_rate=0.01, recompute=on)
        t = trainer(accumulate_grad_batches=accumulate)
        t.fit(module, datamodule=Data(x))
        states.append(state(module, t)["module"])
    for name, expected in states[0].items():
        torch.testing.assert_close(states[1][name], expected, atol=1e-4, rtol=1e-3)


def test_training_falls_back_where_the_inverse_is_rough():
    class Rough(Permutation):
        def inverse(self, z, context=None):
            x, log_det = super().inverse(z, context)
            return x + 0.01, log_det

    flow = deep()
    flow.bijection.bijections[1] = Rough(torch.tensor([3, 4, 5, 0, 2, 1]))
    module = FlowTraining(flow, recompute=True)
    module._drift.every = 3
    with pytest.warns(RuntimeWarning, match="from step 3 activations are kept"):
        trainer().fit(module, datamodule=Data(torch.randn(64, 6)))
    assert not flow.bijection.recompute
    assert module._drift.state_dict() == {"recomputes": False}


@pytest.mark.slow
def test_half_precision_accumulation_and_compilation_work_together():
    x = torch.randn(64, 6)

    def losses(**options):
        torch.manual_seed(0)
        module = FlowTraining(deep(), learning_rate=0.01, **options)
        t = trainer(accumulate_grad_batches=2, precision="bf16-mixed", max_epochs=3)
        t.fit(module, datamodule=Data(x))
        return t.callback_metrics["val/bits_per_dim"]

    plain = losses()
    torch.testing.assert_close(losses(compile=True), plain, atol=2e-2, rtol=0)
    torch.testing.assert_close(losses(compile=True, recompute=True), plain, atol=2e-2, rtol=0)
