"""Repeated captures of a loop, and buffers of threads; a counter replaces the capture itself."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from torch import nn

from arflows.core.bijections import Affine, Autoregressive, RationalQuadraticSpline
from arflows.core.conditioners import CausalTransformer, Guided, MaskedMLP
from arflows.core.runtime import cuda_graphs
from arflows.core.runtime.cuda_graphs import replayed

pytestmark = pytest.mark.report


class FakeGraph:
    """A capture on the CPU: the attributes of the module are those at the time of the capture."""

    captures = 0

    def __init__(self, key, loop, x, context):
        type(self).captures += 1
        self.key, self.loop, self.x = key, loop, x.clone()

    def replay(self, x, context):
        self.x.copy_(x)
        return tuple(output.clone() for output in self.loop(self.x, context))


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "_Graph", FakeGraph)
    monkeypatch.setattr(FakeGraph, "captures", 0)
    return FakeGraph


class Scaled(nn.Module):
    """A network with an attribute of each kind."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("shift", torch.zeros(3))
        self.weight, self.sizes, self.activation, self.constant = 1.0, [1, 2], torch.tanh, torch.ones(3)
        self.options = {"bound": 2.0}

    def forward(self, x, context=None):
        return (self.activation(self.dropout(self.linear(x))) * self.weight + self.shift * self.constant,)


def run(module, x=None, context=None):
    with torch.no_grad():
        return replayed(module, module, torch.zeros(2, 3) if x is None else x, context)


def test_one_capture_serves_until_something_changes(fake):
    module = Scaled().eval()
    for _ in range(3):
        run(module)
    with torch.no_grad():
        module.linear.weight.mul_(2)  # in place, as training does
    run(module, torch.ones(2, 3))
    assert fake.captures == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda module: setattr(module, "weight", 2.0),
        lambda module: setattr(module, "activation", torch.relu),
        lambda module: setattr(module, "constant", torch.zeros(3)),
        lambda module: module.sizes.append(3),
        lambda module: module.options.update(bound=3.0),
        lambda module: module.train(),
        lambda module: module.dropout.train(),
        lambda module: setattr(module.dropout, "p", 0.2),
        lambda module: setattr(module, "dropout", nn.Identity()),
        lambda module: setattr(module, "shift", torch.ones(3)),
        lambda module: setattr(module.linear, "weight", nn.Parameter(torch.zeros(3, 3))),
        lambda module: module.linear.register_forward_hook(lambda *_: None),
    ],
)
def test_changed_state_is_captured_anew(fake, change):
    module = Scaled().eval()
    run(module)
    change(module)
    run(module)
    run(module)
    assert fake.captures == 2


def test_changed_modes_and_shapes_are_captured_anew(fake):
    module = Scaled().eval()
    run(module)
    with torch.autocast("cpu", torch.bfloat16):
        run(module)
    with torch.autocast("cpu", torch.float16):
        run(module)
    assert fake.captures == 3
    run(module)
    run(module, torch.zeros(4, 3))
    run(module, torch.zeros(4, 3), torch.zeros(4, 1))
    assert fake.captures == 6
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        run(module, torch.zeros(4, 3), torch.zeros(4, 1))
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert fake.captures == 7


def test_threads_share_no_buffers(fake):
    module = Scaled().eval()
    seen = []
    run(module)

    def in_thread():
        run(module)
        seen.append(cuda_graphs._captured.graphs[module])

    threads = [threading.Thread(target=in_thread) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    run(module)
    assert fake.captures == 3
    assert len({id(graph.x) for graph in (*seen, cuda_graphs._captured.graphs[module])}) == 3


def test_a_graph_goes_with_its_module():
    module = Scaled().eval()
    module.itself = module.forward  # an attribute that refers to the module
    with torch.no_grad():
        replayed(module, lambda x, context: (x,), torch.zeros(2, 3), None)
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("conditioner", "elementwise", "shape"),
    [
        (MaskedMLP(6, 2, (12, 12)), Affine(), (6,)),
        (MaskedMLP(6, 23, (12, 12)), RationalQuadraticSpline(8), (6,)),
        (CausalTransformer(6, 2, 2, 16, 2, 2), Affine(), (6, 2)),
        (Guided(CausalTransformer(6, 2, 2, 16, 2, 2, 3), 0.5), Affine(), (6, 2)),
    ],
)
def test_sampling_changes_no_state(fake, monkeypatch, conditioner, elementwise, shape):
    """A module that stored something at each call would be captured at each call."""
    bijection = Autoregressive(copy.deepcopy(elementwise), conditioner).eval()
    z = torch.randn(3, *shape)
    context = torch.randn(3, conditioner.context_features) if conditioner.context_features else None

    def loop(z, context):
        stream = bijection.conditioner.stream(z, context)
        return stream.generate(bijection.elementwise, z)

    for _ in range(3):
        with torch.no_grad():
            replayed(bijection, loop, z, context)
    assert fake.captures == 1
    if isinstance(conditioner, Guided):
        conditioner.weight = 2.0
        with torch.no_grad():
            replayed(bijection, loop, z, context)
        assert fake.captures == 2
