"""Synthesis with WaveFlow compared with the machine's matrix products: ``python benchmarks/waveflow_synthesis.py``.

How many times faster than speech, and at which share of the rate of `torch.mm` of 1024 × 1024 matrices in float32, on
as many threads, measured in turn with it. Operations are those of the model as it is trained, two for each weight and
sample; steps do fewer, since the skip path and the first layer are folded. Error: of waveforms in bfloat16, the largest
difference to float32 from the same latents. Weights are random. Each row is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import OUT, measure_in_turn, table, write
from torch import Tensor

from arflows.audio import WaveFlow

GOALS = {
    "CPU, h16_c64, 1 thread, float32: share of mm": 0.75,
    "CPU, a preset, 2 threads: × real time": 1.0,
    "GPU, h16_c64, bfloat16, batch 1: × real time": 300.0,
    "GPU, h16_c64, bfloat16, batch 16: × real time": 800.0,
}
SIZE = 1024


def operations(flow: WaveFlow) -> int:
    """Multiplications and additions for a sample by the convolutions of all flows, as they are trained."""
    count = 0
    for network in flow.bijection.networks:
        convolutions = [network.input_proj, network.output_proj]
        convolutions += [convolution for layer in network.stack for convolution in (layer.convolution, layer.mix)]
        count += sum(2 * convolution.weight.numel() for convolution in convolutions)
    return count


def measure_synthesis(
    preset: str, precision: str, threads: int, batch: int, seconds: float, repeats: int
) -> dict[str, Any]:
    """One row."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    flow = WaveFlow.from_preset(preset).to(device).eval()
    for parameter in flow.parameters():
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    frames = round(seconds * flow.spec.sample_rate / flow.spec.hop)
    mel = torch.randn(batch, flow.spec.bands, frames, device=device) - 5
    samples = batch * frames * flow.spec.hop

    def synthesise(low: bool) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16) if low else nullcontext():
            return flow.sample(mel=mel, generator=torch.Generator().manual_seed(0))

    matrix = torch.randn(SIZE, SIZE, device=device)
    result = torch.empty_like(matrix)

    def multiply() -> None:
        for _ in range(10):
            torch.mm(matrix, matrix, out=result)

    low = precision == "bfloat16"
    with torch.inference_mode():
        ours, theirs = measure_in_turn(lambda: synthesise(low), multiply, repeats=repeats)
        error = float((synthesise(True) - synthesise(False)).abs().max()) if low else 0.0
    rate, limit = operations(flow) * samples / ours.median, 10 * 2 * SIZE**3 / theirs.median
    return {
        "preset": preset,
        "device": device.type,
        "threads": threads,
        "precision": precision,
        "batch": batch,
        "seconds": seconds,
        "× real time": samples / flow.spec.sample_rate / ours.median,
        "GFLOP/s": rate / 1e9,
        "mm GFLOP/s": limit / 1e9,
        "share of mm": rate / limit,
        "error": error,
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["h16_c64", "h16_c32"])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16] if torch.cuda.is_available() else [1])
    parser.add_argument("--seconds", type=float, default=10.0 if torch.cuda.is_available() else 4.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON file")
    options = parser.parse_args()

    def alone(*arguments: Any) -> dict[str, Any]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(measure_synthesis, arguments)

    settings = product(options.presets, options.precisions, options.threads, options.batch)
    rows = [alone(*setting, options.seconds, options.repeats) for setting in settings]
    print(table(rows))
    print(f"goals: at least {GOALS}; {write('waveflow_synthesis', rows, folder=options.out, goals=GOALS)}")


if __name__ == "__main__":
    main()
