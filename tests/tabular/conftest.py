"""Small stores and small trained models, shared by all tests of the verbs."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from arflows.tabular import train
from arflows.tabular.prepare import prepare
from tests.launch import command

SCALE, SHIFT = np.array([1e3, 0.01]), np.array([5e4, 1.0])


def recipe(store: Path, features: int, context: int = 0) -> dict:
    sizes = {"features": features, "context": context, "transforms": 2, "hidden_features": [16]}
    return {
        "model": {"flow": {"class_path": "arflows.core.flows.NSF", "init_args": sizes}, "learning_rate": 0.01},
        "data": {"store": str(store), "batch_size": 100},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
    }


@pytest.fixture(scope="session")
def moons(tmp_path_factory) -> Path:
    """A store of 800, 100 and 100 points of the two moons."""
    path = tmp_path_factory.mktemp("moons") / "moons.h5"
    prepare("two_moons", path, size=1000)
    return path


@pytest.fixture(scope="session")
def houses_csv(tmp_path_factory) -> Path:
    """Rows of which price and area follow from the year, in units of their own."""
    path = tmp_path_factory.mktemp("houses") / "houses.csv"
    generator = np.random.default_rng(0)
    year = generator.uniform(1950, 2020, 1000)
    noise = generator.normal(size=(1000, 2))
    price, area = (((year[:, None] - 1985) / 20 + 0.5 * noise) * SCALE + SHIFT).T
    rows = np.column_stack([price, year, area])
    np.savetxt(path, rows, delimiter=",", header="price,year,area", comments="", fmt="%.8g")
    return path


@pytest.fixture(scope="session")
def houses(tmp_path_factory, houses_csv) -> Path:
    """The store of these rows, conditioned on the year."""
    path = tmp_path_factory.mktemp("houses_store") / "houses.h5"
    prepare(str(houses_csv), path, context=["year"])
    return path


@pytest.fixture(scope="session")
def moons_recipe(tmp_path_factory, moons) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "moons.yaml"
    path.write_text(yaml.safe_dump(recipe(moons, 2)))
    return path


@pytest.fixture(scope="session")
def moons_run(tmp_path_factory, moons_recipe) -> Path:
    """The folder of a finished run on the moons."""
    out = tmp_path_factory.mktemp("runs") / "moons"
    command(train)(["--config", str(moons_recipe), "--out", str(out)])
    return out


@pytest.fixture(scope="session")
def houses_run(tmp_path_factory, houses) -> Path:
    """The folder of a finished conditional run on the houses."""
    folder = tmp_path_factory.mktemp("houses_run")
    (folder / "houses.yaml").write_text(yaml.safe_dump(recipe(houses, 2, 1)))
    command(train)(["--config", str(folder / "houses.yaml"), "--out", str(folder / "run")])
    return folder / "run"


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
