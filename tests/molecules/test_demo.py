import pytest

from arflows.core.commands.report import Picture, Setup, Table, write_report
from arflows.molecules import demo


@pytest.fixture
def hurried(monkeypatch):
    """Small molecules, three steps of training."""
    train = demo.train
    shorter = ["--trainer.max_steps", "3", "--trainer.val_check_interval", "3"]
    shorter += ["--trainer.enable_progress_bar", "false"]
    monkeypatch.setattr(demo, "train", lambda *words: train(*words, *shorter))
    monkeypatch.setattr(demo, "MAX_ATOMS", 8)
    monkeypatch.setattr(demo, "SAMPLES", 100)


def test_the_chapter_draws_molecules_and_tells_three_validities(hurried, tmp_path):
    chapter = demo.chapter(tmp_path / "demo", seed=3)
    grid, histograms, validity, figures, protocol = chapter.blocks
    assert [type(block) for block in chapter.blocks] == [Picture, Picture, Table, Table, Setup]
    assert grid.picture.startswith(b"\x89PNG")
    assert [axis.get_xlabel() for axis in histograms.picture.axes if axis.get_visible()] == list(demo.SHOWN)
    rows = {row[0]: row[1:] for row in validity.rows}
    assert rows["with masks"] == ["100", "100", "100.0 %"]
    assert int(rows["raw: no masks"][0]) < 100  # three steps do not teach valences
    assert float(dict(figures.rows)["test log-likelihood, nats a molecule"].partition(" ")[0]) < -5
    assert protocol.facts["seed"] == 3
    write_report(tmp_path / "report.html", [chapter], {"seed": 3})
    assert (tmp_path / "report.html").read_text().count("data:image/png") == 2


@pytest.mark.slow
def test_a_minute_teaches_valences(tmp_path):
    chapter = demo.chapter(tmp_path / "demo")
    [validity, _] = [block for block in chapter.blocks if isinstance(block, Table)]
    shares = {row[0]: float(row[3].partition(" ")[0]) for row in validity.rows}
    assert shares["raw: no masks"] > 80
    assert shares["with masks"] == 100
