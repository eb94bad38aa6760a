"""Two processes do what one does: with gloo, on the CPU."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml

from arflows.vision import sample, score, train
from arflows.vision.prepare import prepare
from tests.launch import ARFLOWS, command

from .conftest import RECIPE

STEPS = 6


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Of which the validation images make five batches and a bit."""
    path = tmp_path_factory.mktemp("store") / "digits.h5"
    prepare("digits", path, limit=200, val_fraction=0.205)
    return path


def words(store, folder, batch_size, *more):
    options = {**RECIPE, "data": {"store": str(store), "batch_size": batch_size, "eval_batch_size": 8, "flip": True}}
    options["trainer"] = options["trainer"] | {"max_steps": STEPS, "max_epochs": -1, "log_every_n_steps": 1}
    options["trainer"] |= {"check_val_every_n_epoch": None, "val_check_interval": 3}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(options))
    return ["--config", str(folder / "recipe.yaml"), "--out", str(folder / "run"), *more]


def curve(run, name):
    values = {}  # of a step that was done again the later ones
    for version in sorted((run / "logs").glob("version_*")):
        with (version / "metrics.csv").open(newline="") as file:
            values |= {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}
    return np.array(sorted(values.items()))


def start(verb, words, processes=1):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = ["torch.distributed.run", "--nproc-per-node", str(processes), "--no-python", ARFLOWS]
    started = launcher if processes > 1 else ["arflows.core.commands.cli"]
    done = subprocess.run(
        [sys.executable, "-m", *started, "vision", verb, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("model", ["RealNVP", pytest.param("Glow", marks=pytest.mark.slow)])
def test_the_same_global_batch_gives_the_same_losses(model, store, tmp_path):
    """Noise, mirrored images, statistics of batches, initialisation from data: all as in one process."""
    more = []
    if model == "Glow":
        sizes = {"image_size": 8, "channels": 1, "levels": 1, "steps": 1, "width": 4}
        more = ["--model.flow", json.dumps({"class_path": "arflows.vision.Glow", "init_args": sizes})]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    command(train)(words(store, tmp_path / "one", 32, *more))
    start("train", words(store, tmp_path / "two", 16, "--trainer.devices", "2", *more), processes=1)
    for name in ("train/bits_per_dim", "train/gradient_norm", "val/bits_per_dim"):
        one, two = curve(tmp_path / "one/run", name), curve(tmp_path / "two/run", name)
        assert len(one) == (2 if name.startswith("val") else STEPS)
        np.testing.assert_allclose(two, one, rtol=1e-4 if "norm" in name else 1e-5)


@pytest.mark.slow
def test_a_distributed_run_resumes(store, tmp_path):
    """Each process loads the state; layers that start from data are not set again."""
    for name in ("parts", "whole"):
        (tmp_path / name).mkdir()
    two = ["--trainer.devices", "2", "--save_every", "2"]
    start("train", words(store, tmp_path / "whole", 16, *two))
    start("train", words(store, tmp_path / "parts", 16, *two, "--trainer.max_steps", "4"))
    start("train", words(store, tmp_path / "parts", 16, *two, "--resume"))
    whole, parts = (curve(tmp_path / name / "run", "train/bits_per_dim") for name in ("whole", "parts"))
    np.testing.assert_array_equal(parts, whole)


def test_verbs_share_their_work_and_write_one_ordered_output(run_folder, digits, tmp_path):
    drawn = ["--model", str(run_folder), "--count", "21", "--batch_size", "4", "--seed", "3", "--device", "cpu"]
    scored = ["--model", str(run_folder), "--images", str(digits), "--batch_size", "16", "--device", "cpu"]
    command(sample)([*drawn, "--out", str(tmp_path / "one")])
    command(score)([*scored, "--out", str(tmp_path / "one.csv")])
    told = start("sample", [*drawn, "--out", str(tmp_path / "two")], processes=2)
    assert told.count("21 images") == 1
    start("score", [*scored, "--out", str(tmp_path / "two.csv")], processes=2)
    one, two = np.load(tmp_path / "one/samples.npz"), np.load(tmp_path / "two/samples.npz")
    for name in one.files:
        np.testing.assert_array_equal(two[name], one[name])
    assert (tmp_path / "two.csv").read_text() == (tmp_path / "one.csv").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "one.csv", "two", "two.csv"]
