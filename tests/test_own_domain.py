"""A domain in a package of its own, made as CONTRIBUTING.md says: found, listed, prepared and trained."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.launch import ARFLOWS

FILES = {
    "dice/__init__.py": '"""Throws of two loaded dice."""\n',
    "dice/domain.py": '''
"""The domain on the command line."""

from arflows.core.commands.domains import Domain

DOMAIN = Domain(
    name="dice",
    summary="sums of throws of two loaded dice",
    module="dice",
    verbs={"prepare": "throw the dice and make a store of it", "train": "train a flow on a store"},
    examples="throws",
)
''',
    "dice/prepare.py": '''
"""Throw dice: ``arflows dice prepare``."""

from pathlib import Path

import numpy as np

from arflows.core.runtime.option_types import PositiveInt
from arflows.data.store_writer import write_store


def prepare(out: Path, count: PositiveInt = 100, seed: int = 0) -> None:
    """Make a store of throws.

    Args:
        out: The store to write.
        count: Throws in each split.
        seed: Seed of the throws.
    """
    generator = np.random.default_rng(seed)
    splits = {split: {"x": generator.normal(7, 2, (count, 2)).astype(np.float32)} for split in ("train", "val")}
    write_store(out, domain="dice", spec={"dice": 2}, splits=splits, provenance={"source": "thrown"})
    print(f"{out}: {count} throws")
''',
    "dice/datamodule.py": '''
"""From a store of throws to batches."""

from pathlib import Path
from typing import Any

from arflows.data.batches import StoreDataModule, StoreDataset


class DiceDataModule(StoreDataModule):
    """Batches of throws."""

    def __init__(self, store: Path, batch_size: int = 16, seed: int = 0) -> None:
        super().__init__(store, "dice", batch_size, batch_size, seed=seed)

    def dataset(self, split: str, training: bool = False) -> StoreDataset:
        return StoreDataset(self.store, split, {"x": "x"})
''',
    "dice/train.py": '''
"""Train a flow on a store of throws: ``arflows dice train``."""

from collections.abc import Sequence

from arflows.core.commands.train import run_experiment
from arflows.core.training.experiment import Experiment
from arflows.core.training.module import FlowTraining
from dice.datamodule import DiceDataModule


class DiceExperiment(Experiment):
    """Trains a flow on throws."""

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(FlowTraining, DiceDataModule, words, "dice")


def train(*words: str) -> None:
    """Train a flow on a store of throws."""
    run_experiment(DiceExperiment, words)
''',
    "dice/recipes/tiny.yaml": """
model:
  flow: {class_path: arflows.core.flows.MAF, init_args: {features: 2, transforms: 1, hidden_features: [8]}}
  unit: nats
trainer: {max_steps: 2, max_epochs: -1, accelerator: cpu, devices: 1}
""",
    "dice-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: dice\nVersion: 1.0\n",
    "dice-1.0.dist-info/entry_points.txt": "[arflows.domains]\ndice = dice.domain:DOMAIN\n",
}


@pytest.fixture(scope="module")
def arflows(tmp_path_factory):
    """The command in a process that has the package installed."""
    folder = tmp_path_factory.mktemp("installed")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.lstrip("\n"))
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(folder)]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def call(*words) -> str:
        done = subprocess.run([ARFLOWS, *map(str, words)], env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_it_is_listed_among_the_others(arflows):
    listed = arflows("--help")
    assert "dice         sums of throws of two loaded dice" in listed
    assert "vision " in listed
    assert "prepare      throw the dice" in arflows("dice", "--help")


def test_its_verbs_run(arflows, tmp_path):
    assert arflows("dice", "prepare", "--out", tmp_path / "dice.h5", "--count", 40).endswith("40 throws\n")
    run = tmp_path / "run"
    told = arflows("dice", "train", "--config", "tiny", "--data.store", tmp_path / "dice.h5", "--out", run)
    assert "is the trained model" in told
    assert json.loads(Path(run / "model/training.json").read_text())["steps"] == 2
    assert "sound" in arflows("verify", run)
