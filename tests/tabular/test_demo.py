import pytest

from arflows.core.commands.report import Picture, Setup, Table, write_report
from arflows.tabular import demo


@pytest.fixture
def hurried(monkeypatch):
    """Two of the densities, three steps of training."""
    train = demo.train
    shorter = [
        "--trainer.max_steps",
        "3",
        "--trainer.val_check_interval",
        "1",
        "--trainer.enable_progress_bar",
        "false",
    ]
    monkeypatch.setattr(demo, "train", lambda *words: train(*words, *shorter))
    monkeypatch.setattr(demo, "SETS", {name: demo.SETS[name] for name in ("pinwheel", "checkerboard")})


def test_the_chapter_has_a_picture_and_a_row_of_each_density(hurried, tmp_path):
    chapter = demo.chapter(tmp_path / "demo", seed=3)
    *figures, table, protocol = chapter.blocks
    assert [type(block) for block in chapter.blocks] == [Picture, Picture, Table, Setup]
    assert [len(figure.picture.axes) for figure in figures] == [3, 3]
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert [row["density"] for row in rows] == ["pinwheel", "checkerboard"]
    assert [row["best there is"] for row in rows] == ["not known", "-3.466"]
    for row in rows:
        assert float(row["∫ density"]) == pytest.approx(1, abs=1e-2)
        assert float(row["test log-likelihood"].partition(" ")[0]) < -3
    assert protocol.facts["seed"] == 3
    write_report(tmp_path / "report.html", [chapter], {"seed": 3})
    assert (tmp_path / "report.html").read_text().count("data:image/png") == 2


@pytest.mark.slow
def test_the_flows_come_near_the_true_densities(tmp_path):
    chapter = demo.chapter(tmp_path / "demo")
    [table] = [block for block in chapter.blocks if isinstance(block, Table)]
    for row in table.rows:
        reached, best, integral = row[1].partition(" ")[0], row[2], row[3]
        assert float(integral) == pytest.approx(1, abs=3e-3)
        if best != "not known":
            assert float(best) - 0.2 < float(reached) < float(best) + 0.05
