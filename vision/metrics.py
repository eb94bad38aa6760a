"""What is measured beside likelihood, and on which data."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from arflows.data.store import Store


def images_per_second(work: Callable[[], object], images: int, device: torch.device, seconds: float = 1.0) -> float:
    """Measures a speed: the median over calls, after one that does not count.

    Args:
        work: What to measure; does ``images`` images at each call.
        images: How many these are.
        device: The device it computes on.
        seconds: How long to measure, at least three calls.
    """
    durations: list[float] = []
    while len(durations) < 4 or sum(durations[1:]) < seconds:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - start)
    return images / sorted(durations[1:])[(len(durations) - 1) // 2]


def data_facts(store: Store) -> dict[str, Any]:
    """Which data a result was obtained on: the store, its counts, and the fingerprint of its settings."""
    return {
        "store": str(store.path),
        "source": Path(str(store.provenance.get("source"))).name,  # where it lay on one machine is nobody's business
        "available": store.provenance.get("available"),
        "fingerprint": store.fingerprint,
        "counts": store.splits,
    }
