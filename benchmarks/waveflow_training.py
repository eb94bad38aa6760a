"""A training step of WaveFlow compared with its convolutions alone: ``python benchmarks/waveflow_training.py``.

The convolutions alone are the same layers on inputs of the same shapes and types, forward and backward: what gates,
sums, folds, log-determinants, conditions and the optimiser add to them is what the figure tells. They are those of the
published network; the flow saves some of them, since it folds the skip path and the first layer into others. They run
eagerly, for a compiler leaves convolutions as they are.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import OUT, measure_in_turn, table, write
from torch import Tensor, nn
from torch.nn import functional as F

from arflows.audio import WaveFlow

GOAL = {"step / convolutions": 1.25}
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


def measure_step(preset: str, precision: str, compiled: bool, batch: int, samples: int, threads: int) -> dict[str, Any]:
    """One row: a step, with gradients and Adam, and the convolutions of its networks, in milliseconds."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    flow = WaveFlow.from_preset(preset).to(device)
    for parameter in flow.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    waveform = 0.1 * torch.randn(batch, samples, device=device)
    mel = torch.randn(batch, flow.spec.bands, flow.spec.frames(samples), device=device) - 5
    optimizer = torch.optim.Adam(flow.parameters(), 1e-5, fused=True)
    low = PRECISIONS[precision]

    def half() -> Any:
        return nullcontext() if low is None else torch.autocast(device.type, dtype=low)

    def loss(waveform: Tensor, mel: Tensor) -> Tensor:
        return -flow.log_prob(waveform, mel=mel).mean() / samples

    objective: Callable[..., Tensor] = torch.compile(loss, fullgraph=True) if compiled else loss

    def step() -> None:
        optimizer.zero_grad()
        with half():
            value = objective(waveform, mel)
        value.backward()
        optimizer.step()

    whole, alone = measure_in_turn(step, convolutions(flow, batch, samples, low or torch.float32), warmup=2, repeats=5)
    return {
        "preset": preset,
        "device": device.type,
        "threads": threads,
        "precision": precision,
        "compiled": compiled,
        "batch": batch,
        "samples": samples,
        "step ms": 1e3 * whole.median,
        "convolutions ms": 1e3 * alone.median,
        "step / convolutions": whole.median / alone.median,
    }


def convolutions(flow: WaveFlow, batch: int, samples: int, dtype: torch.dtype) -> Callable[[], None]:
    """Runs every convolution of every layer forward and backward, on inputs laid out as in training."""
    layers = []
    columns = samples // flow.height

    def rows(channels: int, height: int, width: int) -> Tensor:
        made = torch.randn(batch, channels, height, width, device=flow.device, dtype=dtype)
        return made.contiguous(memory_format=torch.channels_last).requires_grad_()

    def weight(convolution: nn.Conv2d) -> Tensor:
        return convolution.weight.detach().to(dtype, memory_format=torch.channels_last).requires_grad_()

    for part in flow.bijection.bijections:
        for layer in part.conditioner.layers:
            channels = part.conditioner.channels
            padded = rows(channels, flow.height + layer.past, columns + sum(layer.margins))
            layers.append((padded, weight(layer.convolution), layer.dilation))
            layers.append((rows(channels, flow.height, columns), weight(layer.mix), (1, 1)))
    outputs = [torch.randn_like(F.conv2d(x, w, dilation=d).detach()) for x, w, d in layers[:2]]
    last = torch.randn_like(F.conv2d(layers[-1][0], layers[-1][1]).detach())

    def run() -> None:
        for x, w, dilation in layers:
            y = F.conv2d(x, w, dilation=dilation)
            gradient = next(g for g in (*outputs, last) if g.shape == y.shape)
            torch.autograd.grad(y, [x, w], gradient)

    return run


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["h16_c64", "h16_c32"])
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON file")
    options = parser.parse_args()

    def alone(*arguments: Any) -> dict[str, Any]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(measure_step, arguments)

    rows = [
        alone(preset, precision, mode == "compiled", options.batch, options.samples, options.threads)
        for preset, precision, mode in product(options.presets, options.precisions, options.modes)
    ]
    print(table(rows))
    print(f"goal: at most {GOAL}; {write('waveflow_training', rows, folder=options.out, goal=GOAL)}")


if __name__ == "__main__":
    main()
