"""Pictures: grids of drawn molecules, and histograms of their properties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rdkit import Chem
from rdkit.Chem import rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D
from rdkit.rdBase import BlockLogs

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import replacing

CELL = (220, 180)
"""Width and height in pixels of one drawn molecule."""

MOST_BINS = 40


def grid_png(smiles: Sequence[str], legends: Sequence[str] | None = None, columns: int | None = None) -> bytes:
    """Draw molecules in rows and return the bytes of a PNG image.

    Args:
        smiles: SMILES that RDKit can read.
        legends: A line below each.
        columns: Molecules in a row; as many as make the grid about square if None.
    """
    drawer = _draw(rdMolDraw2D.MolDraw2DCairo, smiles, legends, columns)
    return drawer.GetDrawingText()


def grid_svg(smiles: Sequence[str], legends: Sequence[str] | None = None, columns: int | None = None) -> str:
    """Draw molecules as `grid_png`, and return the text of an SVG image.

    Args:
        smiles: SMILES that RDKit can read.
        legends: A line below each.
        columns: Molecules in a row; as many as make the grid about square if None.
    """
    return _draw(rdMolDraw2D.MolDraw2DSVG, smiles, legends, columns).GetDrawingText()


def save_grid(path: Path, smiles: Sequence[str], legends: Sequence[str] | None = None) -> None:
    """Draw molecules into a file, whole or not at all.

    Args:
        path: A file that ends in .png or .svg.
        smiles: SMILES that RDKit can read.
        legends: A line below each.

    Raises:
        UserError: The file is of another kind, or there is nothing to draw.
    """
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"{path} is no picture that can be drawn: give a name that ends in .png or .svg.")
    if not smiles:
        raise UserError(f"{path} was not drawn: there is no molecule to draw.")
    content = grid_png(smiles, legends) if path.suffix == ".png" else grid_svg(smiles, legends).encode()
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _draw(
    drawer_class: type, smiles: Sequence[str], legends: Sequence[str] | None, columns: int | None
) -> rdMolDraw2D.MolDraw2D:
    columns = columns or max(1, round(len(smiles) ** 0.5))
    rows = -(-len(smiles) // columns)
    width, height = CELL
    with BlockLogs():
        molecules = [Chem.MolFromSmiles(each) for each in smiles]
        for molecule in molecules:
            rdDepictor.Compute2DCoords(molecule)
        drawer = drawer_class(columns * width, rows * height, width, height)
        options = drawer.drawOptions()
        options.legendFontSize = 13
        options.padding = 0.08
        options.drawMolsSameScale = False  # or the largest makes all others small
        drawer.DrawMolecules(molecules, legends=list(legends or [""] * len(molecules)))
        drawer.FinishDrawing()
    return drawer


def property_histograms(values: Mapping[str, Mapping[str, Sequence[float] | np.ndarray]]) -> Figure:
    """Draw how properties are spread in several sets of molecules, such as data and samples.

    Args:
        values: For each property by its name, and for each set by its name, the values of its molecules.
    """
    columns = min(4, len(values))
    rows = -(-len(values) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.4 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, (name, sets) in zip(axes, values.items(), strict=False):
        arrays = {label: np.asarray(each, float) for label, each in sets.items()}
        edges = _edges(np.concatenate(list(arrays.values())))
        for label, array in arrays.items():
            weights = np.full(len(array), 1 / max(1, len(array)))
            axis.hist(array, edges.tolist(), weights=weights, alpha=0.55, label=f"{label} ({len(array):,})")
        axis.set_xlabel(name)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    for axis in axes[len(values) :]:
        axis.set_visible(False)
    axes[0].set_ylabel("share of the set")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _edges(values: np.ndarray) -> np.ndarray:
    """Bins; of small counts one for each."""
    low, high = values.min(), values.max()
    if (values == np.rint(values)).all() and high - low < MOST_BINS:
        return np.arange(low, high + 2) - 0.5
    return np.histogram_bin_edges(values, bins=MOST_BINS, range=tuple(np.quantile(values, [0.002, 0.998])))
