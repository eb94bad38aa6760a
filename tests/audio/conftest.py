"""A small store of built-in speech and small trained models, shared by all tests of the verbs."""

from pathlib import Path

import pytest
import yaml

from arflows.audio import train
from arflows.audio.prepare import prepare
from tests.launch import command

RECIPE = {
    "model": {
        "flow": {
            "class_path": "arflows.audio.WaveFlow",
            "init_args": {"height": 8, "channels": 4, "layers": 2, "flows": 2},
        },
        "learning_rate": 0.003,
    },
    "data": {"batch_size": 4, "segment": 2048},
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
}


@pytest.fixture(scope="session")
def speech(tmp_path_factory) -> Path:
    """A store of a few sentences of five speakers."""
    path = tmp_path_factory.mktemp("store") / "espeak.h5"
    prepare("espeak", path, val_fraction=0.1, test_fraction=0.1, limit=24)
    return path


@pytest.fixture(scope="session")
def recipe(tmp_path_factory, speech) -> Path:
    """A training recipe of seconds, without an ``out``."""
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "data": {**RECIPE["data"], "store": str(speech)}}))
    return path


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, recipe) -> Path:
    """The folder of a finished training run of a model without speakers."""
    out = tmp_path_factory.mktemp("runs") / "small"
    command(train)(["--config", str(recipe), "--out", str(out), "--trainer.limit_val_batches", "2"])
    return out


@pytest.fixture(scope="session")
def speaker_run(tmp_path_factory, recipe) -> Path:
    """The same of a model of the store's five speakers."""
    out = tmp_path_factory.mktemp("runs") / "speakers"
    words = ["--config", str(recipe), "--out", str(out), "--model.flow.init_args.speakers", "5"]
    command(train)([*words, "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "1"])
    return out
