"""Parts of ``evaluate`` that all domains share: speed, provenance and output."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from arflows.core.flow import Flow
from arflows.core.runtime.files import replacing
from arflows.core.runtime.machine import hardware, software
from arflows.core.runtime.pretrained import model_folder, training_facts


def per_second(work: Callable[[], object], examples: int, device: torch.device, seconds: float = 1.0) -> float:
    """Measure throughput: examples per second, from the median duration of calls after a warm-up call.

    Args:
        work: Function to measure; one call processes ``examples`` examples.
        examples: Number of examples per call.
        device: Device of the computation, which is synchronised.
        seconds: Least duration of the measurement, which has at least three calls.
    """
    durations: list[float] = []
    while len(durations) < 4 or sum(durations[1:]) < seconds:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - start)
    return examples / sorted(durations[1:])[(len(durations) - 1) // 2]


def provenance(flow: Flow, model: str, options: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the information needed to repeat an evaluation, as values for JSON.

    Args:
        flow: The model.
        model: Folder or name that it was loaded from; facts about its training are included.
        options: Options of the command.
        data: Facts about the data, from ``Store.facts``.
    """
    return {
        "model": {"class": type(flow).__name__, "parameters": sum(p.numel() for p in flow.parameters())},
        "options": dict(options),
        "training": _training(Path(model_folder(model))),
        "data": dict(data),
        "software": software(),
        "hardware": hardware(flow.device),
    }


def write_result(out: Path, result: Mapping[str, Any], rows: Mapping[str, str]) -> None:
    """Write an evaluation as JSON and print it as a table.

    Args:
        out: The JSON file; replaced if it exists.
        result: Content of the file: figures, `provenance`, and the duration in ``seconds``.
        rows: Rows of the table; rows for model, data and machine are added.
    """
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    common = {
        "model": f"{result['model']['class']}, {result['model']['parameters']:,} parameters",
        "data": f"{result['options']['split']} of {result['data']['store']}, from {result['data']['source']}",
        "machine": "{device} ({processor}, {threads} threads)".format(**result["hardware"]),
        "written": f"{out}, after {result['seconds']:.0f} s",
    }
    table = {**rows, **common}
    width = max(map(len, table)) + 2
    for name, value in table.items():
        print(f"{name:<{width}}{value}")


def _training(folder: Path) -> dict[str, Any] | None:
    """Return training facts and the options of the run; None for a model that ``train`` did not write."""
    training, run = training_facts(folder), folder.parent / "config.yaml"
    if training is None:
        return None
    kept = ("val", "epochs", "steps", "skipped_steps", "seconds", "seed", "software", "hardware")
    config = yaml.safe_load(run.read_text(encoding="utf-8")) if run.is_file() else None
    return {**{name: training[name] for name in kept}, "config": config}
