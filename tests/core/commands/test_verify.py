"""``arflows verify``: damaged files are found and named."""

import subprocess
import zipfile

import numpy as np
import pytest
import torch

from arflows.core.commands import cli
from arflows.core.flows import MAF
from arflows.core.training.module import FlowTraining
from arflows.data.store import Store
from arflows.data.store_writer import write_store
from tests.core.training.training_runs import Data, small_flow, trainer


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.fixture
def run(tmp_path):
    """The folder of a run with a model and states."""
    trainer(tmp_path / "run" / "checkpoints").fit(FlowTraining(small_flow()), datamodule=Data(torch.randn(16, 4)))
    MAF(2, transforms=1, hidden_features=[4]).save_pretrained(tmp_path / "run" / "model")
    return tmp_path / "run"


@pytest.fixture
def store(tmp_path):
    write_store(tmp_path / "s.h5", domain="tabular", spec={}, splits={"train": {"x": np.arange(600.0).reshape(300, 2)}})
    return tmp_path / "s.h5"


def test_what_is_as_it_was_is_sound(run, store, capsys):
    cli.main(["verify", str(store)])
    assert capsys.readouterr().out == f"{store}: a store of tabular, train 300: sound\n"
    cli.main(["verify", str(run)])
    assert capsys.readouterr().out == (
        f"{run}/checkpoints: 2 states to resume from: sound\n{run}/model: a model, 2 files: sound\n"
    )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_flipped_byte_of_a_model_is_named(name, run, fails):
    flip(run / "model" / name, -5)
    assert f"{run}/model is damaged in {name}: copy" in fails(2, cli.main, ["verify", str(run / "model")])


def test_a_missing_file_of_a_model_is_named(run, fails):
    (run / "model" / "model.safetensors").unlink()
    assert "is damaged in model.safetensors" in fails(2, cli.main, ["verify", str(run / "model")])


def test_a_flipped_byte_of_a_state_is_named(run, fails):
    path = run / "checkpoints" / "last.ckpt"
    with zipfile.ZipFile(path) as archive:
        content = archive.read(max(archive.infolist(), key=lambda part: part.file_size))
    flip(path, path.read_bytes().index(content) + len(content) // 2)
    assert f"{path} is damaged" in fails(2, cli.main, ["verify", str(run)])


def test_a_flipped_byte_of_a_store_is_named(store, fails):
    flip(store, Store(store).fields("train")["x"].offset + 1000)
    assert f"{store} is damaged in train/x" in fails(2, cli.main, ["verify", str(store)])


def test_a_model_without_checksums_says_so(run, fails):
    (run / "model" / "SHA256SUMS").unlink()
    assert "has no SHA256SUMS" in fails(2, cli.main, ["verify", str(run)])


def test_the_checksums_are_those_of_sha256sum(run):
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=run / "model", check=True)


@pytest.mark.parametrize("kind", ["missing", "text"])
def test_other_paths_are_refused(kind, tmp_path, fails):
    if kind == "text":
        (tmp_path / "text").write_text("hello")
    sentence = "check the path" if kind == "missing" else "is neither a store nor a model folder nor a run folder"
    assert sentence in fails(2, cli.main, ["verify", str(tmp_path / kind)])
