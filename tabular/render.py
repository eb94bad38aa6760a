"""Plots of two-dimensional densities and of points."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from arflows.core.flows import VectorFlow

RESOLUTION = 200
"""Points of a map's grid in each direction."""

Extent = tuple[float, float, float, float]


def extent_of(points: Float32[np.ndarray, "count 2"], margin: float = 0.1) -> Extent:
    """The rectangle that holds nearly all points, with a margin: left, right, bottom, top."""
    low, high = np.quantile(points, [0.003, 0.997], axis=0)  # a single outlier must not shrink the rest
    space = np.maximum(margin * (high - low), 1e-6 * np.abs(low).max() + 1e-12)
    (left, bottom), (right, top) = (low - space).tolist(), (high + space).tolist()
    return left, right, bottom, top


@torch.no_grad()
def density_map(
    flow: VectorFlow, extent: Extent, context: Float[Tensor, "1 context"] | None = None, resolution: int = RESOLUTION
) -> Float32[np.ndarray, "rows columns"]:
    """The density of a flow over the plane on a grid of the middles of equal cells, lowest row first.

    Args:
        flow: The flow, over two features.
        extent: The rectangle: left, right, bottom, top.
        context: Condition of the density.
        resolution: Cells in each direction.
    """
    left, right, bottom, top = extent
    middles = (torch.arange(resolution) + 0.5) / resolution
    x, y = left + (right - left) * middles, bottom + (top - bottom) * middles
    points = torch.cartesian_prod(y, x).flip(1).to(flow.device, flow.dtype)
    values = torch.cat([flow.log_prob(part, context) for part in points.split(4096)])
    return values.exp().view(resolution, resolution).cpu().numpy()


def mass(density: Float32[np.ndarray, "rows columns"], extent: Extent) -> float:
    """The integral of a map: 1, if the rectangle holds all of the density and the cells are fine enough."""
    left, right, bottom, top = extent
    return float(density.mean(dtype=np.float64) * (right - left) * (top - bottom))


def density_figure(
    density: Float32[np.ndarray, "rows columns"],
    points: Sequence[tuple[str, Float32[np.ndarray, "count 2"]]],
    extent: Extent,
    names: Sequence[str] = ("x0", "x1"),
) -> Figure:
    """Draws a density as a heat map, and sets of points beside it in the same rectangle.

    Args:
        density: Result of `density_map`.
        points: Each set with its title.
        extent: The rectangle: left, right, bottom, top.
        names: Names of the two features.
    """
    panels = 1 + len(points)
    figure = Figure(figsize=(3.6 * panels, 3.8), layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, panels))
    # Narrow peaks can be so dense that everything else would be black: a tenth of the mass may exceed the scale.
    ordered = np.sort(density, axis=None)
    brightest = ordered[np.searchsorted(ordered.cumsum(), 0.9 * ordered.sum())]
    axes[0].imshow(density, origin="lower", extent=extent, aspect="auto", cmap="magma", vmin=0, vmax=float(brightest))
    axes[0].set_title("density of the flow")
    for panel, (title, values) in zip(axes[1:], points, strict=True):
        panel.scatter(values[:, 0], values[:, 1], s=1.5, linewidths=0, alpha=0.5, color="#2b5cab")
        panel.set_title(f"{title} ({len(values):,})")
    for panel in axes:
        panel.set(xlim=extent[:2], ylim=extent[2:], xlabel=names[0])
        panel.set_box_aspect(1)
    axes[0].set_ylabel(names[1])
    return figure
