"""Overhead of RealNVP over its networks: ``python benchmarks/realnvp_overhead.py``.

A training step (forward, backward, Adam) beside the same step of the coupling networks alone, on inputs of the same
shapes; sampling beside scoring; and the peak memory of a training step. Each row is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import OUT, measure_in_turn, table, write

from arflows.core.bijections import Coupling
from arflows.vision import RealNVP

GOALS = {"step / networks": 1.25, "sample / log_prob": 1.25}
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "realnvp_cifar10": ({"image_size": 32, "channels": 3, "scales": 2, "blocks": 8, "width": 64}, 4),
    "realnvp_cifar10_cpu": ({"image_size": 32, "channels": 3, "scales": 3, "blocks": 1, "width": 32}, 32),
    "demo_digits": ({"image_size": 8, "channels": 1, "scales": 2, "blocks": 2, "width": 32}, 64),
}


def measure_model(name: str, threads: int, repeats: int) -> dict[str, Any]:
    """One row: times in milliseconds, ratios, and memory in MiB above that of the process before the step."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arguments, batch = MODELS[name]
    model = RealNVP(**arguments).to(device).train()
    images = torch.randint(256, (batch, *model.spec.shape), dtype=torch.uint8, device=device)
    step = training_step(model, lambda: -model.log_prob(images).mean())

    before = peak_memory(device)
    step()
    memory = peak_memory(device) - before

    inputs: list[tuple[torch.nn.Module, torch.Tensor]] = []
    hooks = [
        module.conditioner.register_forward_hook(lambda net, given, _: inputs.append((net, given[0].detach())))
        for module in model.modules()
        if isinstance(module, Coupling)
    ]
    model.log_prob(images)
    for hook in hooks:
        hook.remove()
    networks = training_step(model, lambda: torch.stack([net(x.requires_grad_()).mean() for net, x in inputs]).sum())
    full, alone = measure_in_turn(step, networks, repeats=repeats)
    model.eval()
    with torch.no_grad():
        score, sample = measure_in_turn(lambda: model.log_prob(images), lambda: model.sample(batch), repeats=repeats)
    return {
        "model": name,
        "device": device.type,
        "threads": threads,
        "batch": batch,
        "step ms": 1e3 * full.median,
        "networks ms": 1e3 * alone.median,
        "step / networks": full.median / alone.median,
        "log_prob ms": 1e3 * score.median,
        "sample ms": 1e3 * sample.median,
        "sample / log_prob": sample.median / score.median,
        "step MiB": memory,
    }


def training_step(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """A step of Adam on a loss."""
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def peak_memory(device: torch.device) -> float:
    """The most memory so far, in MiB: allocated on the GPU, or resident of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON file")
    options = parser.parse_args()
    rows = []
    for name in MODELS:
        for threads in options.threads:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure_model, (name, threads, options.repeats)))
    print(table(rows))
    print(f"goals: at most {GOALS}; {write('realnvp_overhead', rows, folder=options.out, goals=GOALS)}")


if __name__ == "__main__":
    main()
