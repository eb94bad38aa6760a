"""Write docs/results.md from the measured runs and benchmarks: ``python results/make_page.py``.

A run is ``results/<domain>/<recipe>-<date>.json``, as `arflows <domain> evaluate` writes it; a picture of samples
beside it has the same name with .png. A benchmark is ``benchmarks/out/<name>.json``. Nothing on the page is typed by
hand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arflows.core.commands.domains import all_domains

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results.md"

HEAD = """# Results

Made by `make results` from the files in `results/` and `benchmarks/out/`, which hold the resolved options, versions and
hardware of each figure in full. Every figure below was measured; none is copied from a paper unless the text says so.
"""


def page(root: Path = ROOT) -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for domain in sorted(path for path in (root / "results").iterdir() if path.is_dir()):
        runs = sorted(domain.glob("*.json"))
        if runs:
            parts.append(f"## {domain.name.capitalize()}\n")
            parts += [run_section(run) for run in runs]
    benchmarks = sorted((root / "benchmarks" / "out").glob("*.json"))
    if benchmarks:
        parts.append("## Benchmarks\n")
        parts += [benchmark_section(path) for path in benchmarks]
    return "\n".join(parts)


def run_section(path: Path) -> str:
    """One trained model: its figures and how they came about."""
    run = json.loads(path.read_text(encoding="utf-8"))
    training, data = run["training"], run["data"]
    available = data["available"] or {}
    split = run["options"]["split"]
    scored, what = data["counts"][split], examples_of(path.parent.name)
    facts = {
        **FIGURES.get(path.parent.name, all_figures)(run),
        "data": f"{data['source']}: {split} split, {available.get(split, scored):,} {what} available, "
        f"{scored:,} scored; trained on {data['counts']['train']:,}, chosen by {data['counts'].get('val', 0):,}",
        "model": f"{run['model']['class']}, {run['model']['parameters']:,} parameters",
        "training": f"{duration(training['seconds'])}, {training['steps']:,} steps, {training['epochs']} epochs, "
        f"{training['skipped_steps']} steps skipped, seed {training['seed']}",
        "trained on": machine(training["hardware"]) + f", commit `{training['software']['commit']}`",
        "measured on": machine(run["hardware"]),
    }
    if "note" in run:
        facts["note"] = run["note"]
    lines = [f"### {path.stem}\n", *table(["", ""], facts.items()), ""]
    picture = path.with_suffix(".png")
    if picture.is_file():
        lines += [f"![samples of {path.stem}](../results/{path.parent.name}/{picture.name})\n"]
    return "\n".join(lines)


def image_figures(run: dict[str, Any]) -> dict[str, str]:
    """Measurements of a model of images."""
    bits = run["bits_per_dim"]
    return {
        "test bits/dim": f"**{bits['value']:.4f} ± {bits['standard_error']:.4f}** (s.e. over {bits['count']:,} images)",
        "kind": f"{bits['kind']}: {bits['protocol']}",
        **logit_space(run.get("logit_space_nats")),
        "round trip": f"{run['round_trip_error']['value']:.1e} ({run['round_trip_error']['unit']})",
        "sampling": f"{run['samples_per_second']['value']:.1f} images/s, "
        f"{run['samples_per_second']['batch_size']} at a time",
    }


def molecule_figures(run: dict[str, Any]) -> dict[str, str]:
    """Measurements of a model of molecules."""
    nats, speed = run["nats_per_molecule"], run["samples_per_second"]
    fcd, distributions = run.get("FCD"), run["distributions"]
    shares = {
        "valid raw (no masks)": run["validity"]["raw"],
        "valid with masks": run["validity"]["masked"],
        "valid raw, post-processed": run["validity"]["postprocessed"],
        **{name: run[name] for name in ("unique@1k", "unique@10k", "unique", "novel") if name in run},
        "filters (PAINS, BRENK)": run["filters"],
    }
    similarities = {"SNN": run["SNN"], "fragments": run["fragment_similarity"], "scaffolds": run["scaffold_similarity"]}
    control = {
        f"{name} as asked": f"off by {each['mean_absolute_error']:.3f} on average ({each['shuffled']:.3f} asked "
        f"in another order), correlation {each['correlation'] and round(each['correlation'], 3)}, "
        f"{each['molecules']:,} samples asked for the {name} of test molecules"
        for name, each in run.get("control", {}).items()
    }
    kind = "exact for the canonical order" if nats["kind"] == "exact" else nats["kind"]
    return {
        "test nats/molecule": f"**{nats['value']:.3f} ± {nats['standard_error']:.3f}** (s.e. over {nats['count']:,} "
        f"molecules), {kind}",
        **control,
        **{name: f"{100 * each['value']:.2f} %: {each['count']:,} of {each['of']:,}" for name, each in shares.items()},
        **(
            {"FCD": f"**{fcd['value']:.2f}**, {fcd['generated']:,} samples, {fcd['reference']:,} molecules"}
            if fcd
            else {}
        ),
        "similarity to test molecules": text(similarities),
        "internal diversity": f"{run['IntDiv']:.4f} (test molecules {run['reference_IntDiv']:.4f})",
        "Wasserstein-1 distances": text({name: each["wasserstein"] for name, each in distributions.items()}),
        "means, samples / test": ", ".join(
            f"{name} {each['generated_mean']:.4g} / {each['reference_mean']:.4g}"
            for name, each in distributions.items()
        ),
        "sampling": f"{speed['value']:,.0f} valid molecules/s with masks, {speed['samples']:,} in all",
    }


def speech_figures(run: dict[str, Any]) -> dict[str, str]:
    """Measurements of a model of speech."""
    quality = {
        figure["unit"]: with_interval(figure)
        for figure in run.get("quality", {}).values()
        if figure["value"] is not None
    }
    nats, bits = run["log_likelihood"], run["bits_per_sample"]
    rows = {
        "test log-likelihood": f"**{with_interval(nats)} nats/sample** (95% over {nats['count']} utterances)",
        "kind": nats["kind"],
        "bits/sample": f"{with_interval(bits)}, {bits['kind']}",
    }
    for name, figures in run.get("speakers", {}).items():
        rows[f"speaker {name}"] = f"{with_interval(figures['log_likelihood'])} nats/sample"
    if quality:
        rows["copy synthesis"] = f"temperature {run['options']['temperature']:g}; means and 95% intervals"
    for name, separation in run.get("separation", {}).items():
        rows[f"told from {name}"] = (
            f"AUROC {separation['auroc']:.3f} by nats/sample; {separation['log_likelihood']['count']} recordings of "
            f"{with_interval(separation['log_likelihood'])} nats/sample"
        )
    speed = run.get("real_time_factor")
    if speed is not None:
        rows["synthesis"] = f"{speed['value']:.2f} × real time on {machine(speed.get('hardware', run['hardware']))}"
    return rows | quality


def with_interval(figure: dict[str, Any]) -> str:
    """A mean with half the width of its 95% confidence interval."""
    if figure["standard_error"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} ± {1.96 * figure['standard_error']:.3f}"


FIGURES = {"audio": speech_figures, "vision": image_figures, "molecules": molecule_figures}
"""The figures of a domain's ``evaluate`` as lines of a table, where `all_figures` does not say enough."""


def all_figures(run: dict[str, Any]) -> dict[str, str]:
    """Every figure of an evaluation that is a value, with its standard error and its unit."""
    figures = {name: each for name, each in run.items() if isinstance(each, dict) and each.get("value") is not None}
    return {name.replace("_", " "): text_of(figure) for name, figure in figures.items()}


def text_of(figure: dict[str, Any]) -> str:
    """A figure with its standard error and unit, where it has them."""
    error = f" ± {figure['standard_error']:.4g} (s.e.)" if figure.get("standard_error") is not None else ""
    count = f", over {figure['count']:,}" if "count" in figure else ""
    return f"**{figure['value']:.4g}{error}** {figure.get('unit', '')}".rstrip() + count


def examples_of(domain: str) -> str:
    """The name of a domain's examples, as the domain gives it where it is installed."""
    return next((each.examples for each in all_domains() if each.name == domain), "examples")


def logit_space(figure: dict[str, Any] | None) -> dict[str, str]:
    """The figure of the MAF paper's convention, of which it prints the negative."""
    if figure is None:
        return {}
    return {
        "test log-likelihood in logit space": f"{-figure['value']:.1f} ± {figure['standard_error']:.1f} nats (s.e.)"
    }


def benchmark_section(path: Path) -> str:
    """One benchmark: its rows, its goals, the machine."""
    benchmark = json.loads(path.read_text(encoding="utf-8"))
    rows = benchmark["rows"]
    facts = {
        key: value
        for key, value in benchmark.items()
        if key not in ("benchmark", "rows", "hardware", "software", "date")
        and isinstance(value, str | int | float | dict)
    }
    lines = [
        f"### {benchmark['benchmark']}\n",
        f"{machine(benchmark['hardware'])}; torch {benchmark['software']['torch']}; {benchmark['date'][:10]}; commit "
        f"`{benchmark['software']['commit']}`.\n",
        *table(list(rows[0]), ([text(value) for value in row.values()] for row in rows)),
        "",
        *(f"- {key}: {text(value)}" for key, value in facts.items()),
        "",
    ]
    return "\n".join(lines)


def table(header: Sequence[str], rows: Any) -> list[str]:
    """Markdown lines of a table."""
    return [line(header), line(["---"] * len(header)), *(line(row) for row in rows)]


def line(cells: Sequence[str]) -> str:
    """One row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def text(value: Any) -> str:
    """A number with four digits, a dictionary as ``name value`` pairs, anything else as it is."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {text(entry)}" for name, entry in value.items())
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def machine(hardware: dict[str, Any]) -> str:
    """Device, processor and threads in words."""
    device = "" if hardware["device"] == "cpu" else f"{hardware['device']}, "
    return f"{device}{hardware['processor']}, {hardware['threads']} thread{'s' * (hardware['threads'] != 1)}"


def duration(seconds: float) -> str:
    """Seconds as minutes, or hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
