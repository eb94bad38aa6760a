"""A small store and a small trained model, shared by all tests of the verbs."""

from pathlib import Path

import pytest
import yaml

from arflows.vision import train
from arflows.vision.prepare import prepare
from tests.launch import command

RECIPE = {
    "model": {
        "flow": {
            "class_path": "arflows.vision.RealNVP",
            "init_args": {"image_size": 8, "channels": 1, "scales": 1, "blocks": 1, "width": 4},
        },
        "learning_rate": 0.003,
    },
    "data": {"batch_size": 32},
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
}


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A store of 8×8 digits with labels."""
    path = tmp_path_factory.mktemp("store") / "digits.h5"
    prepare("digits", path, limit=160)
    return path


@pytest.fixture(scope="session")
def recipe(tmp_path_factory, digits) -> Path:
    """A training recipe of seconds, without an ``out``."""
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "data": {**RECIPE["data"], "store": str(digits)}}))
    return path


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, recipe) -> Path:
    """The folder of a finished training run."""
    out = tmp_path_factory.mktemp("runs") / "small"
    command(train)(["--config", str(recipe), "--out", str(out)])
    return out
