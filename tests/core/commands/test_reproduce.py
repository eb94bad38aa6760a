"""``arflows reproduce``: equal figures, or a report of the different ones."""

import json
import shutil

import pytest
import yaml

from arflows.core.commands import cli
from arflows.tabular import evaluate, train
from arflows.tabular.prepare import prepare
from tests.launch import command
from tests.tabular.conftest import recipe


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A store, a run, and the result of its evaluation."""
    folder = tmp_path_factory.mktemp("measured")
    prepare("two_moons", folder / "moons.h5", size=1000)
    (folder / "moons.yaml").write_text(yaml.safe_dump(recipe(folder / "moons.h5", 2)))
    command(train)(["--config", str(folder / "moons.yaml"), "--out", str(folder / "run")])
    evaluate.evaluate(str(folder / "run"), folder / "moons.h5", folder / "result.json", device="cpu")
    return folder


def test_a_result_is_had_again_from_its_model(measured, tmp_path, capsys):
    cli.main(["reproduce", str(measured / "result.json"), "--out", str(tmp_path)])
    told = capsys.readouterr().out
    assert "log_likelihood" in told
    assert "OTHER" not in told
    assert not (tmp_path / "run").exists()


def test_a_result_is_had_again_from_training_anew(measured, tmp_path, capsys):
    """On the same machine the very same model comes out, so that no standard error is needed."""
    words = ["reproduce", str(measured / "result.json"), "--out", str(tmp_path), "--retrain", "true"]
    cli.main(words)
    assert "same" in capsys.readouterr().out
    then, now = (json.loads(path.read_text()) for path in (measured / "result.json", tmp_path / "result.json"))
    assert now["log_likelihood"]["value"] == pytest.approx(then["log_likelihood"]["value"], abs=1e-6)


def test_another_figure_is_told(measured, tmp_path, capsys):
    result = json.loads((measured / "result.json").read_text())
    result["log_likelihood"]["value"] += 0.01
    (tmp_path / "claimed.json").write_text(json.dumps(result))
    with pytest.raises(SystemExit) as ending:
        cli.main(["reproduce", str(tmp_path / "claimed.json"), "--out", str(tmp_path / "out")])
    output = capsys.readouterr()
    assert ending.value.code == 2
    assert "OTHER" in output.out
    assert "was not reproduced" in output.err


@pytest.mark.parametrize("kind", ["no store", "no result", "no JSON"])
def test_what_is_missing_is_named(kind, measured, tmp_path, capsys):
    path = tmp_path / "r.json"
    shutil.copy(measured / "result.json", path)
    if kind == "no store":
        result = json.loads(path.read_text())
        result["options"]["store"] = str(tmp_path / "gone.h5")
        path.write_text(json.dumps(result))
    else:
        path.write_text("{}" if kind == "no result" else "{")
    with pytest.raises(SystemExit) as ending:
        cli.main(["reproduce", str(path), "--out", str(tmp_path / "out")])
    assert ending.value.code == 2
    error = capsys.readouterr().err
    assert ("gone.h5" in error) if kind == "no store" else ("is no result of" in error)
