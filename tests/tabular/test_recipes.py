"""Recipes: each builds the model for its data, which can take a step."""

import json
from pathlib import Path

import numpy as np
import pytest

from arflows.core.commands.recipes import resolve_configs
from arflows.tabular import train
from arflows.tabular.prepare import prepare
from arflows.tabular.train import TableExperiment
from tests.launch import command

RECIPES = sorted((Path(__file__).parents[2] / "tabular/recipes").glob("*.yaml"))
COLUMNS = {"plane": 2, "power": 6, "gas": 8, "hepmass": 21, "miniboone": 43, "bsds300": 63}


@pytest.fixture
def store(tmp_path):
    def make(columns):
        rows = np.random.default_rng(0).normal(size=(300, columns))
        np.savez(tmp_path / "x.npz", train=rows, val=rows[:20], test=rows[:20])
        prepare(str(tmp_path / "x.npz"), tmp_path / "x.h5")
        return tmp_path / "x.h5"

    return make


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_fits_its_data(recipe, store, tmp_path):
    words = ["--config", recipe.stem, "--out", str(tmp_path / "run"), "--data.batch_size", "100"]
    words += ["--data.store", str(store(COLUMNS[recipe.stem.partition("_")[2]]))]
    experiment = TableExperiment(resolve_configs(words, "arflows.tabular"))  # refuses a model that does not fit
    assert experiment.config.out == tmp_path / "run"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_head_names_the_recipe_itself(recipe):
    text = recipe.read_text()
    assert f"arflows tabular train --config {recipe.stem}" in text
    assert "No published" in text or "Target:" in text


def test_training_stops_where_it_no_longer_improves(store, tmp_path, ends):
    words = ["--config", "maf_power", "--out", tmp_path / "run", "--data.store", store(6)]
    quick = ["--model.learning_rate", 0, "--trainer.enable_progress_bar", "false"]
    patience = ["--trainer.callbacks.init_args.patience", 2, "--trainer.max_epochs", 50]
    code, message, _ = ends(command(train), *words, *quick, *patience)
    assert (code, message) == (0, "")
    assert json.loads((tmp_path / "run/model/training.json").read_text())["epochs"] < 50
