import io

import numpy as np
import pytest
from PIL import Image

from arflows.core.runtime.errors import UserError
from arflows.molecules.render import CELL, grid_png, property_histograms, save_grid

SMILES = ["CCO", "c1ccccc1", "CC(=O)O", "C#N", "CS"]


def test_a_grid_has_a_cell_for_each_molecule():
    image = Image.open(io.BytesIO(grid_png(SMILES, columns=2)))
    assert image.size == (2 * CELL[0], 3 * CELL[1])
    pixels = np.asarray(image.convert("L"))
    cells = [
        pixels[row * CELL[1] : (row + 1) * CELL[1], column * CELL[0] : (column + 1) * CELL[0]]
        for row in range(3)
        for column in range(2)
    ]
    assert [bool((cell < 200).any()) for cell in cells] == [True] * 5 + [False]


def test_legends_are_written():
    plain, labelled = (np.asarray(Image.open(io.BytesIO(grid_png(["C"], legend)))) for legend in (None, ["methane"]))
    assert (plain != labelled).any()


def test_files_are_png_or_svg(tmp_path):
    save_grid(tmp_path / "a.png", SMILES)
    save_grid(tmp_path / "a.svg", SMILES, [f"molecule {n}" for n in range(5)])
    assert Image.open(tmp_path / "a.png").format == "PNG"
    assert "<svg" in (tmp_path / "a.svg").read_text()
    with pytest.raises(UserError, match=r"ends in \.png or \.svg"):
        save_grid(tmp_path / "a.gif", SMILES)
    with pytest.raises(UserError, match="no molecule to draw"):
        save_grid(tmp_path / "b.png", [])
    assert len(list(tmp_path.iterdir())) == 2


def test_histograms_have_a_panel_for_each_property():
    rng = np.random.default_rng(0)
    counts = {"data": rng.integers(0, 5, 100), "samples": rng.integers(0, 7, 50)}
    numbers = {name: rng.normal(size=100) for name in counts}
    figure = property_histograms({"rings": counts, "logP": numbers, "QED": numbers, "MW": numbers, "SA": numbers})
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_xlabel() for axis in panels] == ["rings", "logP", "QED", "MW", "SA"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["data (100)", "samples (50)"]
    heights = [patch.get_height() for patch in panels[0].patches]
    assert sum(heights) == pytest.approx(2)  # each set is a whole
    assert len(heights) == 2 * 7  # a bin for each count
