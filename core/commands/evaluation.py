"""What ``evaluate`` says in every domain beside its own figures: speed, and all that is needed to repeat them."""

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
    """Measures a speed: the median over calls, after one that does not count.

    Args:
        work: What to measure; does ``examples`` examples at each call.
        examples: How many these are.
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
    return examples / sorted(durations[1:])[(len(durations) - 1) // 2]


def protocol(flow: Flow, model: str, options: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """What it takes to repeat an evaluation, in values for JSON.

    Args:
        flow: The model.
        model: Where it was loaded from; what training left there is told too.
        options: Those of the command.
        data: What was measured on, as ``Store.facts`` says it.
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
    """Writes an evaluation as JSON, and prints it as a table.

    Args:
        out: The JSON file; replaced if it exists.
        result: What is written: figures, `protocol`, and the ``seconds`` it took.
        rows: The figures as the table has them; the model, the data and the machine are added.
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
    """How the model came about, and every option of its run; None of a model that was not trained by ``train``."""
    training, run = training_facts(folder), folder.parent / "config.yaml"
    if training is None:
        return None
    kept = ("val", "epochs", "steps", "skipped_steps", "seconds", "seed", "software", "hardware")
    config = yaml.safe_load(run.read_text(encoding="utf-8")) if run.is_file() else None
    return {**{name: training[name] for name in kept}, "config": config}
