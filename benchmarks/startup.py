"""Duration of printing a help text: ``python benchmarks/startup.py``.

One repeat is one new process, from its start to its end, with the files already in the page cache.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from common import OUT, measure, table, write

from arflows.core.commands.domains import all_domains

ARFLOWS = Path(sys.executable).with_name("arflows")
GOAL = 1.0  # s


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON file")
    options = parser.parse_args()

    rows = []
    for words in (["--help"], *([domain.name, "--help"] for domain in all_domains())):

        def answer(words: list[str] = words) -> None:
            subprocess.run([ARFLOWS, *words], check=True, stdout=subprocess.DEVNULL)

        seconds = measure(answer, repeats=options.repeats)
        rows.append({"command": " ".join(["arflows", *words]), **seconds._asdict(), "reached": seconds.median <= GOAL})
    print(table(rows))
    print(f"goal: {GOAL:g} s; {write('startup', rows, folder=options.out, goal_seconds=GOAL)}")


if __name__ == "__main__":
    main()
