"""Speed of training a flow over molecules: ``python benchmarks/molecules_training.py --store runs/zinc250k.h5``.

Molecules a second of whole training steps (loading, forward and backward pass, optimizer) at the size of recipe
zinc250k_cpu, in float32 and bfloat16, with the share of the machine's rate of matrix products that they use.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import OUT, measure_in_turn, table, write
from torch.utils.flop_counter import FlopCounterMode

from arflows.molecules.datamodule import MoleculeDataModule
from arflows.molecules.model import MoleculeFlow

GOAL = {"molecules a second on two cores": 200.0}
BATCH = 256
SIDE = 2048


def measure(store: Path, threads: int, dtype: torch.dtype, steps: int) -> dict[str, Any]:
    """One row."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    data = MoleculeDataModule(store, batch_size=BATCH)
    flow = MoleculeFlow(data.spec.as_dict())
    optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
    batches = iter(data.train_dataloader())

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = -flow.log_prob(next(batches)["x"]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    with FlopCounterMode(display=False) as counter:
        step()
    operations = counter.get_total_flops()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    seconds = (time.perf_counter() - start) / steps
    square = torch.randn(SIDE, SIDE, dtype=dtype)
    (product,) = measure_in_turn(lambda: square @ square)
    peak = 2 * SIDE**3 / product.median
    return {
        "threads": threads,
        "precision": str(dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in flow.parameters()),
        "molecules/s": BATCH / seconds,
        "GFLOP a molecule": operations / BATCH / 1e9,
        "GFLOP/s": operations / seconds / 1e9,
        "GFLOP/s of products": peak / 1e9,
        "share": operations / seconds / peak,
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True, help="a prepared store, such as runs/zinc250k.h5")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON file")
    options = parser.parse_args()
    rows = [
        measure(options.store, threads, dtype, options.steps)
        for threads in options.threads
        for dtype in (torch.float32, torch.bfloat16)
    ]
    print(table(rows))
    facts = {"goal": GOAL, "store": options.store.name, "batch": BATCH}
    print(f"goal: at least {GOAL}; {write('molecules_training', rows, folder=options.out, **facts)}")


if __name__ == "__main__":
    main()
