"""Glow compared with normflows' Glow of equal levels, steps and width: ``python benchmarks/glow_normflows.py``.

Both models train (forward, backward, Adam) and sample in the same process, in turn, in float32 without compilation.
Needs ``pip install arflows[bench]``.

Both spend most of their time in the same convolutions of the same library, so how much faster one of them can be has a
limit: beside each ratio stands the arithmetic that ours does in a second, and the last column is what the machine does
in the product of two square matrices. A ratio of 1.3 takes 1.3 / ratio times the former.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import normflows
import torch
from common import OUT, measure, measure_in_turn, table, write
from realnvp_overhead import training_step
from torch.utils.flop_counter import FlopCounterMode

from arflows.vision import Glow

GOAL = 1.3
LEVELS = 3
SIZE, CHANNELS = 32, 3


def peer(steps: int, width: int) -> normflows.MultiscaleFlow:
    """The multiscale Glow of normflows, put together as its documentation's example does."""
    bases, merges, flows = [], [], []
    for level in range(LEVELS):
        channels = CHANNELS * 2 ** (LEVELS + 1 - level)
        blocks = [normflows.flows.GlowBlock(channels, width, split_mode="channel") for _ in range(steps)]
        flows.append([*blocks, normflows.flows.Squeeze()])
        side = SIZE // 2 ** (LEVELS - level)
        if level:
            merges.append(normflows.flows.Merge())
            bases.append(normflows.distributions.DiagGaussian((channels // 2, side, side)))
        else:
            bases.append(normflows.distributions.DiagGaussian((channels, side, side)))
    return normflows.MultiscaleFlow(bases, flows, merges)


def measure_pair(steps: int, width: int, batch: int, threads: int, repeats: int) -> dict[str, Any]:
    """One row: images a second of both, and how many times as many ours does."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ours, theirs = Glow(SIZE, CHANNELS, LEVELS, steps, width).to(device), peer(steps, width).to(device)
    images = torch.randint(256, (batch, CHANNELS, SIZE, SIZE), dtype=torch.uint8, device=device)
    points = (images + torch.rand(images.shape, device=device)) / 256
    ours.initialize(images)
    theirs.log_prob(points, None)  # initialises its activation normalisation
    train_ours, train_theirs = measure_in_turn(
        training_step(ours, lambda: -ours.log_prob(images).mean()),
        training_step(theirs, lambda: -theirs.log_prob(points, None).mean()),
        repeats=repeats,
    )
    with torch.no_grad():
        sample_ours, sample_theirs = measure_in_turn(
            lambda: ours.sample(batch), lambda: theirs.sample(batch), repeats=repeats
        )
        square = torch.randn(1024, 1024, device=device)
        product = measure(lambda: square @ square, repeats=4 * repeats)
    train_gflop = _gflop(lambda: ours.log_prob(images).sum().backward())
    sample_gflop = _gflop(lambda: ours.sample(batch))
    return {
        "width": width,
        "steps": steps,
        "batch": batch,
        "device": device.type,
        "threads": threads,
        "train/s": batch / train_ours.median,
        "normflows train/s": batch / train_theirs.median,
        "train ratio": train_theirs.median / train_ours.median,
        "train GFLOP/s": train_gflop / train_ours.median,
        "samples/s": batch / sample_ours.median,
        "normflows samples/s": batch / sample_theirs.median,
        "sample ratio": sample_theirs.median / sample_ours.median,
        "sample GFLOP/s": sample_gflop / sample_ours.median,
        "product GFLOP/s": 2e-9 * len(square) ** 3 / product.median,
    }


def _gflop(work: Callable[[], object]) -> float:
    """Multiplications and additions of matrix products and convolutions, in billions."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="torch.lu is deprecated")
    rows = [
        measure_pair(options.steps, width, options.batch, threads, options.repeats)
        for width in options.widths
        for threads in options.threads
    ]
    print(table(rows))
    path = write("glow_normflows", rows, folder=options.out, goal=GOAL, peer_version=normflows.__version__)
    print(f"goal: ratios of at least {GOAL}; {path}")


if __name__ == "__main__":
    main()
