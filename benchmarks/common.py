"""Shared parts of the benchmarks: measurement, and records of figures and machine."""

from __future__ import annotations

import datetime
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from arflows.core.runtime import machine

OUT = Path(__file__).parent / "out"

# BENCHMARK_CLOCK=processor counts the seconds that the process computed, not those that passed: for ratios of single
# threads on processors that others use too.
CLOCK = os.environ.get("BENCHMARK_CLOCK", "wall")
_now = {"wall": time.perf_counter, "processor": time.process_time}[CLOCK]


class Timing(NamedTuple):
    """Seconds that one call took."""

    median: float
    min: float
    max: float


def measure(function: Callable[[], Any], *, warmup: int = 1, repeats: int = 5) -> Timing:
    """Time a call, with the GPU's work finished before each look at the clock.

    Args:
        function: What to call.
        warmup: Calls beforehand that are not timed.
        repeats: Calls that are.
    """
    return measure_in_turn(function, warmup=warmup, repeats=repeats)[0]


def measure_in_turn(*functions: Callable[[], Any], warmup: int = 1, repeats: int = 5) -> list[Timing]:
    """Time several calls in turn, A B A B …, so that a machine whose speed drifts is as slow for one as for the other.

    Args:
        functions: What to call.
        warmup: Rounds beforehand that are not timed.
        repeats: Rounds that are.

    Returns:
        The timing of each function.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    for round_number in range(warmup + repeats):
        for times, function in zip(seconds, functions, strict=True):
            _synchronize()
            start = _now()
            function()
            _synchronize()
            if round_number >= warmup:
                times.append(_now() - start)
    return [Timing(statistics.median(times), min(times), max(times)) for times in seconds]


def hardware() -> dict[str, Any]:
    """Say what the figures are measured on: processor, its cores, GPU if there is one, torch threads."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return machine.hardware(device) | {"cores": os.cpu_count()}


def write(name: str, rows: Sequence[dict[str, Any]], *, folder: Path = OUT, **facts: Any) -> Path:
    """Write results to ``<folder>/<name>.json``, with hardware, versions, commit and date beside them.

    Args:
        name: Of the benchmark.
        rows: The results.
        folder: Where the file goes; made if it is not there.
        facts: More about the run, such as goals and settings.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    result = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "software": machine.software(),
        "clock": CLOCK,
        **facts,
        "rows": list(rows),
    }
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay rows out in columns, headed by the keys of the first; numbers to the right, with four digits."""
    columns = list(rows[0])
    texts = [[_text(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    right = [not isinstance(rows[0][column], str) for column in columns]

    def line(cells: Sequence[str]) -> str:
        aligned = zip(cells, widths, right, strict=True)
        return "  ".join(cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in aligned)

    return "\n".join([line(columns), line(["-" * width for width in widths]), *map(line, texts)])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
