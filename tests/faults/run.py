"""Inject faults into every domain that offers a small run, and count the losses: ``python -m tests.faults.run``.

Everything goes through the entry points: ``arflows <domain> prepare`` and ``train``, and `arflows verify`. A fault is
survived if the command ends as a user would want it to (going on as though nothing had happened; or one sentence and
exit code 2, and what was there before still whole). Data are lost where a run cannot be taken up and end in the very
same weights and losses, or where a file that was there before is not what it was.

Each command runs in a process forked from this one, which has imported all that is slow to import.
"""

import argparse
import importlib
import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from arflows.core.commands.domains import all_domains
from tests.faults.inject import Faults
from tests.faults.small import Small
from tests.faults.trial import Count


def domains() -> Iterator[tuple[str, Callable[[Path], Small]]]:
    """Domains that offer a small run."""
    for domain in all_domains():
        if importlib.util.find_spec(f"tests.{domain.name}.faults") is not None:
            yield domain.name, importlib.import_module(f"tests.{domain.name}.faults").small


def run(names: list[str], cycles: int, folder: Path) -> dict[str, dict[str, Count]]:
    """Injects the faults of domains, and prints the table."""
    torch.set_num_threads(1)
    results = {}
    for name, small in domains():
        if names and name not in names:
            continue
        importlib.import_module(f"arflows.{name}.train")  # once, not in every process
        importlib.import_module(f"arflows.{name}.prepare")
        place = folder / name
        place.mkdir(parents=True)
        results[name] = Faults(small(place), place, cycles).inject()
        for fault, count in results[name].items():
            line = f"{name:<10} {fault:<45} {count.tried:>6} {count.survived:>9} {count.lost:>5}"
            print(line + (f"  {count.remarks[0]}" if count.remarks else ""), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=100, help="kills of a run in each domain")
    parser.add_argument("--domains", nargs="*", default=[], help="all by default")
    parser.add_argument("--out", type=Path, help="a JSON file for the table")
    options = parser.parse_args()
    print(f"{'domain':<10} {'fault':<45} {'tried':>6} {'survived':>9} {'lost':>5}")
    with tempfile.TemporaryDirectory() as folder:
        results = run(options.domains, options.cycles, Path(folder))
    if options.out is not None:
        rows = {name: {fault: vars(count) for fault, count in counts.items()} for name, counts in results.items()}
        options.out.write_text(json.dumps(rows, indent=2) + "\n")
    counts = [count for found in results.values() for count in found.values()]
    tried, survived, lost = (sum(getattr(count, name) for count in counts) for name in ("tried", "survived", "lost"))
    print(f"{tried} faults, {survived} survived, {lost} times data were lost")
    raise SystemExit(lost > 0 or survived < tried)


if __name__ == "__main__":
    main()
