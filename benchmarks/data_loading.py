"""Speed of reading batches from a store: ``python benchmarks/data_loading.py``.

The store has the size of CIFAR-10's training set, 50,000 images of 32×32×3; one repeat is one shuffled epoch.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import OUT, measure, table, write

from arflows.data.store_writer import write_store
from arflows.vision.datamodule import ImageDataModule
from arflows.vision.representation import ImageSpec

IMAGES = 50_000
SPEC = ImageSpec(32, 32, 3)
GOAL = 20_000  # images/s


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON file")
    options = parser.parse_args()

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "train.h5"
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, (IMAGES, *SPEC.shape), dtype=np.uint8)
        fields = {"images": images, "labels": generator.integers(0, 10, IMAGES)}
        write_store(store, domain="vision", spec=SPEC.as_dict(), splits={"train": fields})
        for workers in (0, 1, 2):
            data = ImageDataModule(store, batch_size=options.batch_size, workers=workers, flip=True)
            loader = data.train_dataloader()
            timing = measure(lambda loader=loader: _epoch(loader), warmup=1, repeats=options.repeats)
            count = len(loader) * options.batch_size
            rows.append(
                {
                    "workers": workers,
                    "images/s": count / timing.median,
                    "slowest": count / timing.max,
                    "fastest": count / timing.min,
                    "goal met": count / timing.median >= GOAL,
                }
            )
    print(table(rows))
    print(write("data_loading", rows, folder=options.out, images=IMAGES, batch_size=options.batch_size, goal=GOAL))


def _epoch(loader: torch.utils.data.DataLoader) -> None:
    for batch in loader:
        batch["x"][0, 0, 0, 0].item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
