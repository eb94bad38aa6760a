"""What a person looks at: grids of images, training curves, histograms of scores."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from arflows.core.errors import UserError
from arflows.core.files import replacing

SMALLEST = 32
"""Height or width in pixels below which images of a grid are enlarged."""


def grid(
    images: UInt8[Tensor, "count channels height width"], columns: int | None = None
) -> UInt8[Tensor, "3 rows columns"]:
    """Lays images out in rows, with two black pixels between them; enlarges those below 32 pixels by a whole factor.

    Args:
        images: The images, grey or colour.
        columns: Images in a row; as many as make the grid about square if None.

    Returns:
        One colour image.
    """
    columns = columns or max(1, round(len(images) ** 0.5))
    factor = -(-SMALLEST // min(images.shape[-2:]))
    enlarged = images.cpu().repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return make_grid(enlarged, nrow=columns, padding=2)


def save_png(image: UInt8[Tensor, "channels height width"], path: Path) -> None:
    """Writes an image, grey or colour; the file is written whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    pixels = image.cpu().numpy()
    pixels = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    with replacing(path, durable=False) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")


def read_log(run: Path) -> dict[str, np.ndarray]:
    """Reads what a training run logged, over all times it was resumed.

    Args:
        run: The run's folder.

    Returns:
        For each quantity an array (entries, 2) of step and value, by step; of a step that a resumed run repeats, the
        last value.

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


def training_curve(run: Path) -> Figure:
    """Draws training and validation loss over the steps of a run.

    Args:
        run: The run's folder.

    Raises:
        UserError: If the folder holds no log.
    """
    log = read_log(run)
    figure, axes = _panel("training step", "bits/dim")
    if (series := log.get("train/bits_per_dim")) is not None:
        axes.plot(*series.T, label="training batches", linewidth=1, alpha=0.6)
    if (series := log.get("val/bits_per_dim")) is not None:
        axes.plot(*series.T, label="validation", marker="o", markersize=3)
    finite = np.concatenate([series[:, 1] for name, series in log.items() if name.endswith("/bits_per_dim")])
    finite = finite[np.isfinite(finite)]
    if len(finite):  # the first steps would otherwise squash the rest
        low, high = finite.min(), np.quantile(finite, 0.97)
        axes.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.1 * (high - low) + 1e-3)
    axes.legend(frameon=False)
    return figure


def score_histogram(scores: Mapping[str, Sequence[float] | np.ndarray]) -> Figure:
    """Draws how the scores of several sets of images are spread.

    Args:
        scores: For each set, by the name to show, the bits/dim of its images.
    """
    figure, axes = _panel("bits/dim", "share of the set")
    arrays = {name: np.asarray(values, dtype=float) for name, values in scores.items()}
    arrays = {name: values[np.isfinite(values)] for name, values in arrays.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(arrays.values())), bins=60)
    for name, values in arrays.items():
        weights = np.full(len(values), 1 / max(1, len(values)))
        axes.hist(values, edges.tolist(), weights=weights, alpha=0.55, label=f"{name} ({len(values):,})")
    axes.legend(frameon=False)
    return figure


def _panel(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
