"""Flows as programs of torch.export with a batch of any size: densities, and latents to data."""

import pytest
import torch
from torch import nn

from arflows.audio import WaveFlow
from arflows.vision import MADE, MAF, FlowPlusPlus, Glow, RealNVP, TarFlow
from tests.core.test_flows import AUTOREGRESSIVE, COUPLINGS, make

pytestmark = pytest.mark.report

IMAGES = {
    "RealNVP": lambda: RealNVP(8, 1, scales=1, blocks=1, width=4),
    "Glow": lambda: Glow(8, 1, levels=2, steps=1, width=4),
    "FlowPlusPlus": lambda: FlowPlusPlus(8, 1, blocks=1, width=4, heads=2, components=2),
    "MAF": lambda: MAF((2, 3), 1, transforms=2, hidden_features=(8,), alpha=0.05),
    "MADE": lambda: MADE((2, 3), 1, hidden_features=(8,), alpha=0.05),
    "TarFlow": lambda: TarFlow(8, 1, patch_size=4, blocks=2, layers=1, width=8, heads=1),
}


class Decoder(nn.Module):
    """The deterministic part of sampling: latents to data."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, z, *context):
        return self.flow.decode(z, *context)


class Conditional(nn.Module):
    """The density of a flow of speech as a function of two tensors."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x, mel):
        return self.flow(x, mel=mel)


def exported(module, *examples):
    """The program of a module with a batch of any size, ready to run."""
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(module, examples, dynamic_shapes=_dynamic(module, examples, batch))
    return program.module()


def _dynamic(module, examples, batch):
    shapes = tuple({0: batch} for _ in examples)
    if not isinstance(module, Decoder):
        return (shapes,)  # which take any arguments
    return (shapes[0], shapes[1:]) if len(shapes) > 1 else shapes


def randomised(flow):
    torch.manual_seed(0)
    for parameter in flow.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return flow.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "context"), [("MAF", 0), ("RealNVP", 0), *((name, 2) for name in AUTOREGRESSIVE + COUPLINGS)]
)
def test_flows_over_vectors(name, context):
    flow = make(name, features=3, context=context, dtype=torch.float32, hidden_features=(8,)).requires_grad_(False)
    flow.initialize(torch.randn(64, 3), torch.randn(64, context) if context else None)

    def given(count):
        return torch.randn(count, 3), *([torch.randn(count, context)] if context else [])

    density, decoder = exported(flow, *given(3)), exported(Decoder(flow), *given(3))
    for count in (2, 17):
        x = given(count)
        torch.testing.assert_close(density(*x), flow(*x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(decoder(*x), flow.decode(*x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_flows_of_images(name):
    flow = randomised(IMAGES[name]())

    def given(count):
        return torch.randint(256, (count, *flow.spec.shape), dtype=torch.uint8)

    density, decoder = exported(flow, given(3)), exported(Decoder(flow), torch.randn(3, flow.dims))
    for count in (2, 17):
        x, z = given(count), torch.randn(count, flow.dims)
        torch.manual_seed(1)
        found = density(x)
        torch.manual_seed(1)  # of the dequantisation noise
        torch.testing.assert_close(found, flow(x), atol=1e-5 * flow.dims, rtol=1e-5)
        off = (decoder(z).int() - flow.decode(z).int()).abs()
        assert int(off.max()) <= 1  # where a value lies at the border of two pixel values
        assert float((off > 0).float().mean()) < 0.01


def test_flow_of_speech():
    spec = {"sample_rate": 8000, "n_fft": 64, "hop": 16, "window": 64, "bands": 4, "fmax": 4000}
    flow = randomised(WaveFlow(spec, height=4, channels=2, layers=2, flows=2))
    batch = torch.export.Dim("batch", min=2, max=64)

    def given(count):
        return torch.rand(count, 160) - 0.5, torch.randn(count, 4, 10)

    shapes = {"x": {0: batch}, "mel": {0: batch}}
    density = torch.export.export(Conditional(flow), given(3), dynamic_shapes=shapes).module()
    for count in (2, 17):
        x, mel = given(count)
        torch.testing.assert_close(density(x, mel), flow(x, mel=mel), atol=1e-3, rtol=1e-5)
