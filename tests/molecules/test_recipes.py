"""Recipes: each builds a model of its data and states its target."""

from pathlib import Path

import pytest

from arflows.core.commands.recipes import resolve_configs
from arflows.molecules.train import MoleculeExperiment

RECIPES = sorted((Path(__file__).parents[2] / "molecules/recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_fits_its_data(recipe, store, tmp_path):
    words = ["--config", recipe.stem, "--out", str(tmp_path / "run"), "--data.store", str(store)]
    words += ["--data.batch_size", "16", "--trainer.accelerator", "cpu"]
    experiment = MoleculeExperiment(resolve_configs(words, "arflows.molecules"))  # refuses a model that does not fit
    assert experiment.model.flow.spec == experiment.datamodule.spec


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_head_names_the_recipe_itself(recipe):
    text = recipe.read_text()
    assert f"arflows molecules train --config {recipe.stem}" in text
    assert "No published" in text or "Target:" in text
