"""Plots that all domains share: training curves and histograms of scores."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from arflows.core.runtime.errors import UserError

UNITS = {"bits_per_dim": "bits/dim", "nats": "nats", "nats_per_dim": "nats/dim"}
"""Axis labels of the units of training."""


def read_log(run: Path) -> dict[str, np.ndarray]:
    """Read the log of a training run, across all resumptions.

    Args:
        run: The run's folder.

    Returns:
        For each logged quantity an array (entries, 2) of step and value, sorted by step. A step that was repeated after
        a resumption keeps its last value.

    Raises:
        UserError: If the folder holds no log.
    """
    files = sorted(run.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.partition("_")[2]))
    if not files:
        raise UserError(f"{run} holds no log of training (logs/version_0/metrics.csv): give the folder of a run.")
    values: dict[str, dict[int, float]] = {}
    for file in files:
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                for name, value in row.items():
                    if name not in ("step", "epoch") and value:
                        values.setdefault(name, {})[int(row["step"])] = float(value)
    return {name: np.array(sorted(series.items())) for name, series in sorted(values.items())}


def training_curve(run: Path, unit: str = "bits_per_dim", label: str | None = None) -> Figure:
    """Plot training and validation loss over the steps of a run.

    Args:
        run: The run's folder.
        unit: Unit of the loss in the log.
        label: Label of the axis; by default the name of the unit.

    Raises:
        UserError: If the folder holds no log.
    """
    log = read_log(run)
    figure, axes = panel("training step", label or UNITS[unit])
    if (series := log.get(f"train/{unit}")) is not None:
        axes.plot(*series.T, label="training batches", linewidth=1, alpha=0.6)
    if (series := log.get(f"val/{unit}")) is not None:
        axes.plot(*series.T, label="validation", marker="o", markersize=3)
    finite = np.concatenate([series[:, 1] for name, series in log.items() if name.endswith(f"/{unit}")])
    finite = finite[np.isfinite(finite)]
    if len(finite):  # excludes the losses of the first steps, which would compress the rest
        low, high = finite.min(), np.quantile(finite, 0.97)
        axes.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.1 * (high - low) + 1e-3)
    axes.legend(frameon=False)
    return figure


def score_histogram(scores: Mapping[str, Sequence[float] | np.ndarray], label: str = "bits/dim") -> Figure:
    """Plot histograms of the scores of several sets of examples.

    Args:
        scores: Scores of the examples of each set, by its label.
        label: Label of the scores' axis.
    """
    figure, axes = panel(label, "share of the set")
    arrays = {name: np.asarray(values, dtype=float) for name, values in scores.items()}
    arrays = {name: values[np.isfinite(values)] for name, values in arrays.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(arrays.values())), bins=60)
    for name, values in arrays.items():
        weights = np.full(len(values), 1 / max(1, len(values)))
        axes.hist(values, edges.tolist(), weights=weights, alpha=0.55, label=f"{name} ({len(values):,})")
    axes.legend(frameon=False)
    return figure


def panel(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes in the common style."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
