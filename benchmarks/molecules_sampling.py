"""Speed of sampling molecules: ``python benchmarks/molecules_sampling.py --model runs/zinc250k_cpu``.

From nothing to canonical SMILES that RDKit sanitised, with masks, beside growing the graphs alone: over batch sizes and
over counts, with the memory that the process had at most. Each row is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

import torch
from common import OUT, table, write

from arflows.core.runtime.pretrained import load_model
from arflows.molecules.model import MoleculeFlow
from arflows.molecules.workers import Workers

GOAL = {"seconds for 10,000 valid molecules on two cores": 20.0}
PUBLISHED = {"MoFlow, GPU": 24.5, "GraphAF, GPU": 5_800.0, "GraphDF, GPU": 60_000.0}
"""Seconds for 10,000 molecules of ZINC250k, as published."""


def measure(model: str, count: int, batch_size: int, threads: int, workers: int) -> dict[str, Any]:
    """One row."""
    torch.set_num_threads(threads)
    flow = load_model(MoleculeFlow, model)
    with Workers(workers) as pool:
        flow.sample(2 * batch_size, batch_size=batch_size, workers=pool)  # starts the processes
        start = time.perf_counter()
        atoms = valid = 0
        for molecule in flow.draw(count, batch_size=batch_size, workers=pool, seed=1):
            valid += molecule.valid_raw
            atoms += len(molecule.graph.atoms)
        seconds = time.perf_counter() - start
    start = time.perf_counter()
    for _ in flow.generate(min(count, 4 * batch_size), batch_size=batch_size, seed=1):
        pass
    growing = (time.perf_counter() - start) / min(count, 4 * batch_size)
    return {
        "count": count,
        "batch": batch_size,
        "threads": threads,
        "workers": workers,
        "seconds": seconds,
        "seconds for 10,000": 1e4 * seconds / count,
        "growing alone, ms": 1e3 * growing,
        "valid": valid,
        "atoms": atoms / count,
        "memory MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a trained flow over molecules")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256, 512, 1024])
    parser.add_argument("--count", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON file")
    options = parser.parse_args()
    cases = [(options.count[0], batch) for batch in options.batch[:-1]]
    cases += [(count, options.batch[-1]) for count in options.count]
    rows = [_alone(options.model, count, batch, options.threads, options.workers) for count, batch in cases]
    print(table(rows))
    facts = {"goal": GOAL, "published seconds": PUBLISHED, "model": Path(options.model).name}
    print(f"goal: {GOAL}; {write('molecules_sampling', rows, folder=options.out, **facts)}")


def _alone(*arguments: Any) -> dict[str, Any]:
    """Measures in a process of its own; not one of a pool, which may have no children."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(send, arguments))
    process.start()
    send.close()
    row: dict[str, Any] = receive.recv()
    process.join()
    return row


def _send(send: Any, arguments: tuple[Any, ...]) -> None:
    send.send(measure(*arguments))


if __name__ == "__main__":
    main()
