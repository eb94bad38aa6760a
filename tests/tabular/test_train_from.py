"""Training on from a trained model: ``--from``."""

import json

import numpy as np
import pytest
import torch
import yaml

from arflows.core.flows import VectorFlow
from arflows.tabular import train
from arflows.tabular.prepare import prepare
from tests.launch import command
from tests.train_from import starts_where_it_ended

pytestmark = pytest.mark.report


def test_training_on_starts_from_the_density_of_the_model(moons_recipe, moons_run, tmp_path):
    starts_where_it_ended(train, moons_recipe, moons_run, tmp_path / "on")


def test_the_architecture_is_that_of_the_model(moons_recipe, moons_run, tmp_path, ends):
    other = yaml.safe_load(moons_recipe.read_text())
    other["model"]["flow"] = {"class_path": "arflows.core.flows.MAF", "init_args": {"features": 7}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    words = ["--config", tmp_path / "other.yaml", "--from", moons_run, "--out", tmp_path / "on"]
    assert ends(command(train), *words)[0] == 0
    model, on = (VectorFlow.from_pretrained(folder / "model") for folder in (moons_run, tmp_path / "on"))
    assert model.config() == on.config()
    for name in ("bijection.bijections.0.mean", "bijection.bijections.0.scale"):
        assert torch.equal(model.state_dict()[name], on.state_dict()[name])
    code, message, _ = ends(command(train), *words[:-1], tmp_path / "x", "--model.flow.init_args.features", 3)
    assert code == 2
    assert "leave out --model.flow.init_args.features" in message


def test_a_run_that_trained_on_is_resumed_and_repeated_without_the_first_model(moons_recipe, moons_run, tmp_path, ends):
    run = tmp_path / "run"
    words = ["--config", moons_recipe, "--from", moons_run, "--trainer.max_epochs"]
    assert ends(command(train), *words, 1, "--out", run)[0] == 0
    assert ends(command(train), *words, 2, "--out", run, "--resume")[0] == 0
    assert json.loads((run / "model/training.json").read_text())["epochs"] == 2
    assert ends(command(train), "--config", run / "config.yaml", "--out", tmp_path / "again")[0] == 0
    first, again = (VectorFlow.from_pretrained(folder / "model") for folder in (run, tmp_path / "again"))
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


def test_other_columns_are_refused(houses, houses_run, houses_csv, tmp_path, ends):
    rows = np.loadtxt(houses_csv, delimiter=",", skiprows=1)
    np.savetxt(tmp_path / "turned.csv", rows, delimiter=",", header="area,year,price", comments="", fmt="%.8g")
    prepare(str(tmp_path / "turned.csv"), tmp_path / "turned.h5", context=["year"])
    words = ["--config", houses_run.parent / "houses.yaml", "--from", houses_run, "--out", tmp_path / "on"]
    code, message, _ = ends(command(train), *words, "--data.store", tmp_path / "turned.h5")
    assert code == 2
    assert "has the columns area, price" in message
    code, message, _ = ends(command(train), *words[:3], tmp_path / "nowhere", *words[4:])
    assert code == 2
    assert "no model folder" in message


def test_a_store_of_other_widths_is_refused_with_what_can_be_done(moons, houses_run, tmp_path, ends):
    words = ["--config", houses_run.parent / "houses.yaml", "--from", houses_run, "--out", tmp_path / "on"]
    code, message, _ = ends(command(train), *words, "--data.store", moons)
    assert code == 2
    assert "context 1 ≠ 0" in message
    assert "prepare a store with the settings of" in message
