"""Repeat a measurement and compare: ``arflows reproduce results/vision/glow.json``."""

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from arflows.core.commands.cli import main
from arflows.core.commands.domains import all_domains, find_domain
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import replacing
from arflows.core.runtime.machine import software
from arflows.core.runtime.option_types import NonNegativeFloat
from arflows.core.runtime.options import renamed_options
from arflows.core.runtime.pretrained import CONFIG_FILE, model_folder

SPEEDS = ("samples_per_second", "seconds", "factor", "real_time_factor")
"""Timings, which differ between runs."""

NOT_REPEATED = ("model", "options", "training", "data", "software", "hardware", "note", *SPEEDS)


def reproduce(
    result: Path,
    *,
    out: Path,
    model: Path | None = None,
    store: Path | None = None,
    tolerance: NonNegativeFloat = 1e-4,
    retrain: bool = False,
) -> None:
    """Repeat the evaluation in a result file, and compare the figures.

    If the trained model is missing, it is trained again with the options in the result. The model is then evaluated
    with the original options. Figures agree if they differ by no more than the tolerance or, after training again, by
    no more than four standard errors.

    Args:
        result: A file that `evaluate` wrote.
        out: Folder for the new result, and for the new run if there is one.
        model: The trained model, if it has moved.
        store: The store, if it has moved.
        tolerance: Largest relative difference of figures that count as the same.
        retrain: Train again even if the model exists.
    """
    then = _read(result)
    domain = _domain(then, result)
    options = dict(then["options"])
    data = store or Path(options["store"])
    if not data.exists():
        raise UserError(f"the store {data} of {result} does not exist: prepare it again, or give its path by --store.")
    trained = Path(model_folder(str(model or options["model"])))
    retrain = retrain or not (trained / CONFIG_FILE).is_file()
    if retrain:
        if model is not None:
            raise UserError(f"there is no model {model}: check the path, or leave out --model to train again.")
        trained = _train(domain, then, data, out / "run", result)
    now_file = out / "result.json"
    module = importlib.import_module(f"{find_domain(domain).module}.evaluate")
    new_names = renamed_options(module.evaluate)
    words = [
        word
        for name, value in (options | {"model": trained, "store": data}).items()
        for word in _words(new_names.get(name, name), value)
    ]
    main([domain, "evaluate", *words, "--out", str(now_file)])
    now = _read(now_file)
    rows = list(_compared(then, now, tolerance, retrain))
    _report(result, then, now, rows)
    if not all(same for *_, same in rows):
        raise UserError(f"{result} was not reproduced: see the table above, and {now_file}.")


def _train(domain: str, then: dict[str, Any], store: Path, run: Path, result: Path) -> Path:
    config = (then.get("training") or {}).get("config")
    if config is None:
        raise UserError(f"{result} has no training options: give the path of the model by --model.")
    config = {**config, "out": str(run), "data": {**config["data"], "store": str(store)}, "resume": False}
    config["data"].pop("labels", None)  # written by early versions; the model decides it now
    config["trainer"] = {name: value for name, value in config["trainer"].items() if value is not None}
    config["trainer"].pop("use_distributed_sampler", None)
    with replacing(run.parent / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    words = ["--config", str(run.parent / "config.yaml")]
    if any((run / "checkpoints").glob("*.ckpt")):
        words.append("--resume")
    main([domain, "train", *words])
    return run / "model"


def _compared(
    then: dict[str, Any], now: dict[str, Any], tolerance: float, retrain: bool
) -> Iterator[tuple[str, float, float, bool]]:
    """Yield the name of each figure, both values, and True if they agree."""
    for name, figure in then.items():
        if name in NOT_REPEATED or not isinstance(figure, dict) or "value" not in figure:
            continue
        before, after = figure["value"], now.get(name, {}).get("value", math.nan)
        allowed = tolerance * max(1.0, abs(before))
        if retrain and "standard_error" in figure:
            allowed = max(allowed, 4 * figure["standard_error"])
        if name == "round_trip_error":  # a rounding error: only its order of magnitude is compared
            allowed = max(allowed, 10 * before)
        yield name, before, after, abs(after - before) <= allowed


def _report(
    result: Path, then: dict[str, Any], now: dict[str, Any], rows: list[tuple[str, float, float, bool]]
) -> None:
    before, after = (facts["commit"] or facts["arflows"] for facts in (then["software"], software()))
    print(f"{result}, measured by {before}, again by {after}:")
    print(f"{'figure':<24}{'then':>14}{'now':>14}")
    for name, was, is_now, same in rows:
        print(f"{name:<24}{was:>14.6g}{is_now:>14.6g}  {'same' if same else 'OTHER'}")
    for name in ("fingerprint", "content", "counts"):
        if name in then["data"] and then["data"][name] != now["data"].get(name):
            print(f"the data differ in {name}: {then['data'][name]} then, {now['data'].get(name)} now")


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no result of `evaluate` ({error}): give a JSON file that it wrote.") from error
    if not isinstance(result, dict) or not {"options", "data", "software"} <= result.keys():
        raise UserError(f"{path} is no result of `evaluate`: give a JSON file that it wrote.")
    return result


def _domain(then: dict[str, Any], result: Path) -> str:
    """Return the domain of a result: its own entry, else that of its model's class."""
    names = [domain.name for domain in all_domains()]
    path = str(
        (((then.get("training") or {}).get("config") or {}).get("model") or {}).get("flow", {}).get("class_path")
    )
    for name in (
        then["data"].get("domain"),
        *path.split(".")[1:2],
        "tabular" if path.startswith("arflows.core") else None,
    ):
        if name in names:
            return str(name)
    raise UserError(f"{result} does not name its domain: evaluate the model again with this version.")


def _words(name: str, value: Any) -> list[str]:
    return [] if value is None else [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
