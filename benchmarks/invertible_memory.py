"""Peak memory of training, activations stored or recomputed: ``python benchmarks/invertible_memory.py``.

A Glow of one level with 8 to 128 steps of flow on images of 32×32. Peak memory is what a training step (forward,
backward) adds to the process: allocated memory on a GPU, resident memory on a CPU (0 where the step takes no more than
building the model and one step on one image took before). Each row is measured in a process of
its own. The gradient's error is the largest difference to that of kept activations, over its largest entry.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch
from common import OUT, table, write
from realnvp_overhead import peak_memory

from arflows.core.bijections import recompute
from arflows.vision import Glow

DEPTHS = (8, 16, 32, 64, 128)


def measure_depth(depth: int, width: int, batch: int, threads: int, anew: bool) -> dict[str, float]:
    """MiB and seconds of a step, and its gradient as one vector."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Glow(32, 3, levels=1, steps=depth, width=width).to(device).train()
    for parameter in model.parameters():  # the last layers start at zero; a gradient should pass through all of them
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.003)
    images = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8, device=device)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # which every step has, and are not counted
    small = images[:1]
    recompute(model, anew)
    model.log_prob(small).mean().backward()  # what is allocated once
    model.zero_grad(set_to_none=False)
    before = peak_memory(device)
    torch.manual_seed(1)
    start = time.perf_counter()
    model.log_prob(images).mean().backward()
    seconds = time.perf_counter() - start
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    torch.save(gradient.cpu(), _gradient_file(depth, anew))
    return {"MiB": peak_memory(device) - before, "seconds": seconds}


def _gradient_file(depth: int, anew: bool) -> Path:
    return OUT / f".gradient_{depth}_{anew}.pt"


def gradient_error(depth: int) -> float:
    """The largest difference of the two gradients over the largest entry."""
    kept, anew = (torch.load(_gradient_file(depth, way), weights_only=True) for way in (False, True))
    return float((anew - kept).abs().max() / kept.abs().max())


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64, help="channels of the couplings' networks")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON file")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for depth in DEPTHS:
        found = {}
        for anew in (False, True):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[anew] = pool.apply(measure_depth, (depth, options.width, options.batch, options.threads, anew))
        rows.append(
            {
                "steps of flow": depth,
                "kept MiB": found[False]["MiB"],
                "recomputed MiB": found[True]["MiB"],
                "time ratio": found[True]["seconds"] / found[False]["seconds"],
                "gradient error": gradient_error(depth),
            }
        )
        for anew in (False, True):
            _gradient_file(depth, anew).unlink()
    print(table(rows))
    print(write("invertible_memory", rows, folder=options.out, batch=options.batch, width=options.width))


if __name__ == "__main__":
    main()
