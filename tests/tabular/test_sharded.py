"""FSDP: two processes with a part of the weights each, equal to one process.

On the CPU, with gloo: Lightning asks for GPUs, and PyTorch for the name of the device; the script sees to both.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from arflows.core.flows import NSF
from arflows.tabular import train
from tests.launch import command

SCRIPT = """
import sys, torch
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch.distributed import fsdp
from arflows.core.commands.cli import main

def wrapped(self, model):
    return fsdp.FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)

def here(kind):
    return lambda offload_to_cpu, rank0_only: kind(offload_to_cpu=False, rank0_only=rank0_only)

fsdp.FullStateDictConfig = here(fsdp.FullStateDictConfig)
fsdp.api.FullOptimStateDictConfig = here(fsdp.api.FullOptimStateDictConfig)
_AcceleratorConnector._check_strategy_and_fallback = lambda self: None
FSDPStrategy._setup_model = wrapped
main(["tabular", "train", *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def words(moons, moons_recipe, tmp_path_factory):
    recipe = yaml.safe_load(moons_recipe.read_text())
    recipe["model"] |= {"ema_decay": 0.0}
    recipe["trainer"] |= {"max_epochs": 2, "log_every_n_steps": 1}
    path = tmp_path_factory.mktemp("recipe") / "sharded.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return ["--config", str(path)]


def sharded(folder, words):
    (folder / "train.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "train.py"), *words, "--trainer.strategy", "fsdp", "--trainer.devices", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def curves(run):
    found = {}
    for path in sorted((run / "logs").glob("version_*/metrics.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name in ("train/nats", "train/gradient_norm", "val/nats", "val/round_trip_error"):
                    if row.get(name):
                        found[name, int(row["step"])] = float(row[name])
    return found


@pytest.mark.slow
def test_losses_and_weights_are_those_of_one_process_also_after_resume(words, tmp_path):
    command(train)([*words, "--out", str(tmp_path / "one")])
    two = [*words, "--data.batch_size", "50", "--out", str(tmp_path / "two")]
    for more in (["--trainer.max_epochs", "1"], ["--resume"]):
        done = sharded(tmp_path, [*two, *more])
        assert done.returncode == 0, done.stderr[-3000:]
    one, both = curves(tmp_path / "one"), curves(tmp_path / "two")
    assert len(one) == len(both) > 20
    for key, value in one.items():
        assert both[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
    flows = [NSF.from_pretrained(tmp_path / name / "model") for name in ("one", "two")]
    x = torch.randn(50, 2)
    np.testing.assert_allclose(*(flow.log_prob(x).detach() for flow in flows), rtol=1e-3, atol=1e-4)
    figures = [json.loads((tmp_path / name / "model" / "training.json").read_text())["val"] for name in ("one", "two")]
    assert figures[1]["value"] == pytest.approx(figures[0]["value"], rel=1e-4)


def test_a_moving_average_is_refused(words, tmp_path):
    done = sharded(tmp_path, [*words, "--model.ema_decay", "0.9", "--out", str(tmp_path / "run")])
    assert done.returncode == 2
    assert "FSDP does not shard the moving average of the weights: add --model.ema_decay 0." in done.stderr
    assert not (tmp_path / "run").exists()
