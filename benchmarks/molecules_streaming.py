"""Memory of a long generation: ``python benchmarks/molecules_streaming.py --model runs/zinc250k_cpu``.

Runs ``arflows molecules sample`` and looks, every some seconds, at the memory of all its processes together, pages that
they share counted once (Linux' proportional set size). Molecules go to disk as they are drawn, so it must not grow.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import OUT, table, write

PARTS = 10


def processes(parent: int) -> list[int]:
    """A process and its descendants."""
    found = [parent]
    for children in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in children.read_text().split():
            found += processes(int(child))
    return found


def memory(parent: int) -> float:
    """Of a process and its descendants, in MB."""
    total = 0
    for process in processes(parent):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def watch(words: list[str], every: float) -> tuple[list[tuple[float, float]], float]:
    """Runs a command; returns (seconds, MB) while it ran, and how long it took."""
    start, seen = time.monotonic(), []
    with subprocess.Popen(words) as process:
        while process.poll() is None:
            try:
                seen.append((time.monotonic() - start, memory(process.pid)))
            except OSError:  # one ended meanwhile
                continue
            time.sleep(every)
    if process.returncode:
        raise SystemExit(process.returncode)
    return seen, time.monotonic() - start


def by_parts(seen: list[tuple[float, float]], seconds: float) -> list[dict[str, Any]]:
    """A row for each tenth of the time: the least, mean and most memory in it."""
    rows = []
    for part in range(PARTS):
        first, last = seconds * part / PARTS, seconds * (part + 1) / PARTS
        inside = [mb for at, mb in seen if first <= at < last and mb]
        if inside:
            mean = sum(inside) / len(inside)
            rows.append({"until s": last, "least MB": min(inside), "mean MB": mean, "most MB": max(inside)})
    return rows


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a trained flow over molecules")
    parser.add_argument("--count", type=int, default=1_000_000, help="molecules")
    parser.add_argument("--every", type=float, default=15.0, help="seconds between looks at the memory")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "arflows.core.commands.cli", "molecules", "sample", "--model", options.model]
        words += ["--count", str(options.count), "--out", f"{folder}/molecules.csv"]
        seen, seconds = watch(words, options.every)
    rows = by_parts(seen, seconds)
    print(table(rows))
    facts = {"model": Path(options.model).name, "count": options.count, "seconds": seconds}
    print(f"{seconds:.0f} s; {write('molecules_streaming', rows, folder=options.out, **facts)}")


if __name__ == "__main__":
    main()
