"""Two processes on two cores compared with two threads of one process: ``python benchmarks/distributed.py``.

The same run of a RealNVP on random images of 32×32, at the same global batch: once in one process with two threads,
once in two processes (gloo) with one thread each, by the command line. The speed is the run's own, over its steps after
the first ones.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import OUT, table, write

from arflows.data.store_writer import write_store
from arflows.vision.representation import ImageSpec

FLOW = {
    "class_path": "arflows.vision.RealNVP",
    "init_args": {"image_size": 32, "channels": 3, "scales": 2, "blocks": 1, "width": 32},
}


def speed(store: Path, out: Path, processes: int, threads: int, batch: int, steps: int) -> float:
    """Examples a second."""
    words = {
        "out": out,
        "data.store": store,
        "data.batch_size": batch // processes,
        "model.flow": json.dumps(FLOW),
        "model.round_trip_examples": 0,
        "trainer.accelerator": "cpu",
        "trainer.devices": processes,
        "trainer.max_steps": steps,
        "trainer.max_epochs": -1,
        "trainer.log_every_n_steps": 1,
        "trainer.limit_val_batches": 0,
        "trainer.enable_progress_bar": "false",
    }
    options = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(
        [sys.executable, "-m", "arflows.core.commands.cli", "vision", "train", *options],
        env=environment,
        check=True,
        capture_output=True,
    )
    with (out / "logs" / "version_0" / "metrics.csv").open(newline="") as file:
        rates = [
            float(row["train/examples_per_second"]) for row in csv.DictReader(file) if row["train/examples_per_second"]
        ]
    # Means since the first step of the epoch, which is the only one: what is returned is that of all steps but five.
    first, last, steps = rates[4], rates[-1], len(rates)
    return (steps - 5) / (steps / last - 5 / first)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64, help="global")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = np.random.default_rng(0).integers(
            0, 256, ((options.steps + 1) * options.batch, 3, 32, 32), dtype=np.uint8
        )
        spec = ImageSpec(32, 32, 3).as_dict()
        write_store(folder / "s.h5", domain="vision", spec=spec, splits={"train": {"images": images}})
        rates: dict[tuple[int, int], list[float]] = {(1, 2): [], (2, 1): []}
        for repeat in range(options.repeats):
            for (processes, threads), found in rates.items():
                out = folder / f"{processes}_{repeat}"
                found.append(speed(folder / "s.h5", out, processes, threads, options.batch, options.steps))
    base = float(np.median(rates[1, 2]))
    rows = [
        {
            "processes": processes,
            "threads of each": threads,
            "images/s": float(np.median(found)),
            "relative": float(np.median(found)) / base,
        }
        for (processes, threads), found in rates.items()
    ]
    print(table(rows))
    print(write("distributed", rows, folder=options.out, batch=options.batch, steps=options.steps))


if __name__ == "__main__":
    main()
