"""Synthesis of speech against the machine's limit: ``python benchmarks/waveflow_synthesis.py``.

Untrained weights with noise on them, a mel spectrogram of noise: the arithmetic of a trained model. The rate of
multiply-adds that synthesis sustains stands beside that of a float32 matrix product of 1024³ in the same run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import OUT, measure, table, write

from arflows.audio import WaveFlow

GOALS = {"h16_c64, float32, one thread: share of GEMM": 0.75, "h16_c32, two threads: × real time": 1.0}


def operations(flow: WaveFlow) -> int:
    """Multiply-adds of the networks for one sample, twice: floating-point operations."""
    total = 0
    for network in flow.bijection.networks:
        for layer in network.stack:
            total += layer.convolution.weight.numel() + layer.mix.weight.numel()
    return 2 * total


def gemm_rate(repeats: int, device: torch.device) -> float:
    """Operations a second of a float32 matrix product."""
    a, b = torch.randn(1024, 1024, device=device), torch.randn(1024, 1024, device=device)
    return 2 * 1024**3 / measure(lambda: torch.mm(a, b), warmup=3, repeats=4 * repeats).median


def row(preset: str, low: bool, threads: int, seconds: float, batch: int, repeats: int) -> dict[str, Any]:
    """Speed of one preset, as multiples of real time and of the matrix product's rate."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    flow = WaveFlow.from_preset(preset).to(device).eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    frames = round(seconds * flow.spec.sample_rate / flow.spec.hop)
    mel = torch.randn(batch, flow.spec.bands, frames, device=device) - 5

    def synthesise(low: bool = low) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            return flow.sample(mel=mel, temperature=0.8, generator=torch.Generator().manual_seed(0))

    error = (synthesise() - synthesise(False)).abs().max().item() if low else 0.0
    limit = gemm_rate(repeats, device)
    timing = measure(synthesise, repeats=repeats)
    samples = batch * frames * flow.spec.hop
    return {
        "preset": preset,
        "device": device.type,
        "precision": "bfloat16" if low else "float32",
        "threads": threads,
        "batch": batch,
        "seconds": seconds,
        "× real time": samples / flow.spec.sample_rate / timing.median,
        "GFLOP/s": 1e-9 * samples * operations(flow) / timing.median,
        "float32 GEMM GFLOP/s": 1e-9 * limit,
        "share of GEMM": samples * operations(flow) / timing.median / limit,
        "error": error,
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["h16_c64", "h16_c32"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=4.0, help="length of an utterance")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON file")
    options = parser.parse_args()
    rows = [
        row(preset, low, threads, options.seconds, batch, options.repeats)
        for preset in options.presets
        for low in (False, True)
        for threads in options.threads
        for batch in options.batch
    ]
    print(table(rows))
    print(f"goals: {GOALS}; {write('waveflow_synthesis', rows, folder=options.out, goals=GOALS)}")


if __name__ == "__main__":
    main()
