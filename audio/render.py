"""Plots: spectrograms, and log-likelihood over time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from arflows.audio.representation import MelSpec
from arflows.core.runtime.files import replacing

QUANTILES = (0.01, 0.999)
"""Quantiles of the values at the ends of a spectrogram's colour scale."""

Mel = Float[np.ndarray, "bands frames"]


def spectrograms(mels: Mapping[str, Mel], spec: MelSpec, difference: tuple[str, str] | None = None) -> Figure:
    """Plot log-mel spectrograms below each other, on one colour scale.

    Args:
        mels: Spectrograms by title.
        spec: Settings of the spectrograms.
        difference: Titles of two spectrograms of the same length; the second minus the first is plotted below.
    """
    rows = len(mels) + (difference is not None)
    figure = Figure(figsize=(9, 1.9 * rows + 0.4), layout="constrained")
    panels: Sequence[Axes] = np.atleast_1d(figure.subplots(rows, 1, sharex=True)).tolist()
    low, high = np.quantile(np.concatenate([mel.ravel() for mel in mels.values()]), QUANTILES)
    for axes, (title, mel) in zip(panels, mels.items(), strict=False):
        image = _image(axes, mel, spec, "magma", float(low), float(high), title)
    figure.colorbar(image, ax=list(panels[: len(mels)]), label="log magnitude", pad=0.01)
    if difference is not None:
        first, second = (mels[title] for title in difference)
        reach = float(np.quantile(np.abs(second - first), 0.99)) or 1.0
        title = f"{difference[1]} minus {difference[0]}"
        image = _image(panels[-1], second - first, spec, "RdBu_r", -reach, reach, title)
        figure.colorbar(image, ax=panels[-1], label="difference", pad=0.01)
    panels[-1].set_xlabel("time in s")
    return figure


def likelihood_curve(
    values: Float[np.ndarray, " frames"], mel: Mel, spec: MelSpec, usual: float | None = None, title: str = ""
) -> Figure:
    """Plot the log-likelihood of each frame of an utterance below its spectrogram.

    Args:
        values: Nats per sample of each frame.
        mel: Log-mel spectrogram of the utterance.
        spec: Settings of the spectrogram.
        usual: Mean over training utterances, plotted as a line.
        title: Title of the plot.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    low, high = np.quantile(mel, QUANTILES).tolist()
    _image(above, mel, spec, "magma", low, high, title)
    below.plot(
        (np.arange(len(values)) + 0.5) * spec.hop / spec.sample_rate, values, linewidth=1, label="this utterance"
    )
    if usual is not None:
        below.axhline(usual, color="#5c6068", linestyle="--", linewidth=1, label="mean of training utterances")
    below.set(xlabel="time in s", ylabel="log-likelihood, nats/sample")
    below.grid(alpha=0.25)
    below.spines[["top", "right"]].set_visible(False)
    below.legend(frameon=False, loc="lower right")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _image(axes: Axes, mel: Mel, spec: MelSpec, colours: str, low: float, high: float, title: str) -> AxesImage:
    end = mel.shape[1] * spec.hop / spec.sample_rate
    image = axes.imshow(
        mel,
        origin="lower",
        aspect="auto",
        extent=(0, end, 0, spec.bands),
        cmap=colours,
        vmin=low,
        vmax=high,
        interpolation="nearest",
    )
    axes.set_title(title, fontsize=10)
    axes.set_ylabel("mel band")
    return image
