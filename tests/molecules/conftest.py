"""A small store and a small trained model, shared by all tests of the verbs."""

from pathlib import Path

import pytest
import yaml

from arflows.molecules import train
from arflows.molecules.prepare import prepare
from tests.launch import command


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """A store of small molecules of the built-in set."""
    path = tmp_path_factory.mktemp("molecules") / "nci.h5"
    prepare("nci", path, max_atoms=8, workers=1)
    return path


@pytest.fixture(scope="session")
def recipe(tmp_path_factory, store) -> Path:
    """A recipe for that store that takes a second."""
    sizes = {"width": 16, "layers": 1, "heads": 2}
    settings = {
        "model": {
            "flow": {"class_path": "arflows.molecules.MoleculeFlow", "init_args": sizes},
            "learning_rate": 0.01,
            "ema_decay": 0.5,
        },
        "data": {"store": str(store), "batch_size": 32},
        "trainer": {"max_steps": 40, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
    }
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="session")
def run(tmp_path_factory, recipe) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "small"
    command(train)(["--config", str(recipe), "--out", str(out)])
    return out


@pytest.fixture
def ends(capsys):
    """Runs a verb; returns its exit code, the last line on standard error, and standard output."""

    def call(main, *words):
        try:
            main([str(word) for word in words])
        except SystemExit as ending:
            captured = capsys.readouterr()
            return ending.code, captured.err.strip().splitlines()[-1], captured.out
        return 0, "", capsys.readouterr().out

    return call
