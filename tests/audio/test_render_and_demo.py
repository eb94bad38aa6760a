"""Plots of speech, and the demo's chapter."""

import re

import numpy as np
import pytest

from arflows.audio import demo
from arflows.audio.render import likelihood_curve, save_figure, spectrograms
from arflows.audio.representation import MelSpec
from arflows.core.commands.report import Paragraph, Picture, Setup, Sounds, Table, write_report

SPEC = MelSpec()


def test_spectrograms_and_their_difference(tmp_path):
    rng = np.random.default_rng(0)
    first = rng.normal(-5, 1, (80, 100))
    figure = spectrograms({"a": first, "b": first + 0.5}, SPEC, difference=("a", "b"))
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(images) == 3
    assert images[0].get_clim() == images[1].get_clim()
    np.testing.assert_allclose(images[2].get_array(), 0.5)
    assert images[2].axes.get_title() == "b minus a"
    assert images[0].get_extent()[1] == pytest.approx(100 * 256 / 22_050)
    save_figure(figure, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_likelihood_over_time():
    values = np.linspace(1, 5, 40)
    figure = likelihood_curve(values, np.zeros((80, 40)) - 3, SPEC, usual=4.0, title="x.wav")
    curve, usual = figure.axes[1].lines
    np.testing.assert_array_equal(curve.get_ydata(), values)
    assert curve.get_xdata()[0] == pytest.approx(128 / 22_050)
    assert list(usual.get_ydata()) == [4.0, 4.0]


@pytest.mark.report
def test_the_chapter(monkeypatch, tmp_path):
    train, prepare = demo.train, demo.prepare
    shorter = [
        "--trainer.max_steps",
        "3",
        "--trainer.val_check_interval",
        "3",
        "--trainer.enable_progress_bar",
        "false",
    ]
    small = [
        "--model.flow.init_args.channels",
        "4",
        "--model.flow.init_args.layers",
        "2",
        "--trainer.limit_val_batches",
        "1",
    ]
    monkeypatch.setattr(demo, "train", lambda *words: train(*words, *shorter, *small))
    monkeypatch.setattr(demo, "prepare", lambda *args, **options: prepare(*args, **{**options, "limit": 6}))
    monkeypatch.setattr(demo, "EVALUATED", 1)
    chapter = demo.chapter(tmp_path / "demo", seed=3)
    kinds = [Sounds, Picture, Picture, Paragraph, Picture, Picture, Table, Setup]
    assert [type(block) for block in chapter.blocks] == kinds
    assert re.match(r"Two mel spectrograms that differ by [\d.]+ on average", chapter.blocks[1].alt)
    figures = dict(chapter.blocks[-2].rows)
    assert float(figures["times real time"]) > 0
    assert chapter.blocks[-1].facts["seed"] == 3
    write_report(tmp_path / "report.html", [chapter], {"seed": 3})
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:audio/wav") == 2
    assert page.count("data:image/png") == 4
