"""Speed of preparing molecules: ``python benchmarks/molecules_prepare.py --source zinc250k_train.smi.gz``.

Without a source it takes the built-in set, which is small: starting the processes then counts for much.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import time
from pathlib import Path

from common import OUT, table, write

from arflows.data.store import Store
from arflows.molecules.prepare import prepare

GOAL = 240  # seconds for ZINC250k on two cores


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="nci")
    parser.add_argument("--test", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, os.cpu_count()])
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON file")
    options = parser.parse_args()

    rows = []
    for workers in options.workers:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            store = Path(folder) / "store.h5"
            start = time.perf_counter()
            prepare(options.source, store, test=options.test, workers=workers)
            seconds = time.perf_counter() - start
            facts = Store(store).provenance["files"].values()
        read, used = (sum(each[name] for each in facts) for name in ("read", "used"))
        # Duplicates are found again; everything else that is not used has no graph that gives it back.
        lost = sum(
            n for each in facts for reason, n in each["rejected"].items() if not reason.startswith("a duplicate")
        )
        rows.append(
            {
                "processes": workers,
                "molecules": read,
                "seconds": seconds,
                "molecules/s": read / seconds,
                "used": used,
                "come back %": 100 * (read - lost) / read,
            }
        )
    print(table(rows))
    source = Path(options.source).name
    print(
        write("molecules_prepare", rows, folder=options.out, source=source, goal=f"ZINC250k in {GOAL} s on two cores")
    )


if __name__ == "__main__":
    main()
