import json
import math

import numpy as np
import pytest

from arflows.core.flows import MAF
from arflows.data.store_writer import write_store
from arflows.tabular import evaluate as evaluation
from arflows.tabular.evaluate import evaluate
from tests.launch import command


def test_measures_a_trained_model(moons_run, moons, tmp_path, ends):
    out = tmp_path / "deep" / "result.json"
    code, _, printed = ends(
        command(evaluation), "--model", moons_run, "--store", moons, "--out", out, "--solver", "jacobi"
    )
    assert code == 0
    result = json.loads(out.read_text())
    trained = json.loads((moons_run / "model/training.json").read_text())["val"]["value"]
    assert result["log_likelihood"]["value"] == pytest.approx(-trained, abs=0.3)
    assert result["log_likelihood"]["unit"] == "nats"
    assert result["log_likelihood"]["count"] == 100
    assert result["round_trip_error"]["value"] < 1e-4
    assert result["samples_per_second"]["value"] > 0
    assert result["samples_per_second"]["solver"] == "jacobi"
    assert result["model"]["class"] == "NSF"
    assert result["training"]["config"]["model"]["flow"]["init_args"]["features"] == 2
    assert "over 100 rows" in printed
    assert f"two are {2 * result['log_likelihood']['standard_error']:.4f}" in printed


def test_conditional_models_too(houses_run, houses, tmp_path):
    result = evaluate(str(houses_run), houses, tmp_path / "r.json")
    assert result["log_likelihood"]["count"] == 100
    assert result["round_trip_error"]["value"] < 1e-4


def test_log_likelihood_is_that_of_a_density_known_in_closed_form(tmp_path):
    rows = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    write_store(tmp_path / "s.h5", domain="tabular", spec={"features": 3, "context": 0}, splits={"test": {"x": rows}})
    MAF(3, hidden_features=(8,), batch_norm=False).save_pretrained(tmp_path / "model")
    figure = evaluate(str(tmp_path / "model"), tmp_path / "s.h5", tmp_path / "r.json")["log_likelihood"]
    expected = -0.5 * (rows**2).sum(1) - 1.5 * math.log(2 * math.pi)
    assert figure["value"] == pytest.approx(expected.mean(), abs=1e-5)
    assert figure["standard_error"] == pytest.approx(expected.std(ddof=1) / math.sqrt(500), rel=1e-4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--split", "holdout"], "no split 'holdout'"),
        (["--batch_size", 0], "--batch_size takes a whole number from 1 up, not '0'"),
        (["--store", "missing.h5"], "no store at missing.h5"),
        (["--solver", "guess"], "guess"),
    ],
)
def test_bad_options_are_one_sentence(words, sentence, moons_run, moons, tmp_path, ends):
    out = tmp_path / "r.json"
    code, message, _ = ends(command(evaluation), "--model", moons_run, "--store", moons, "--out", out, *words)
    assert code == 2
    assert sentence in message
    assert not out.exists()
