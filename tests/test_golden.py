"""Files of older formats, which must always load. Never change them; add those of a new version."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from arflows.core.flows import NSF, VectorFlow
from arflows.core.runtime import pretrained
from arflows.core.runtime.errors import UserError
from arflows.data import store as store_module
from arflows.data.store import Store
from arflows.tabular import train
from tests.golden_models import KINDS, measure
from tests.launch import command

GOLDEN = Path(__file__).parent / "golden"
ROWS = np.arange(24, dtype=np.float32).reshape(12, 2) / 7


def test_store_1():
    store = Store(GOLDEN / "store_v1.h5", expect_domain="tabular")
    store.verify()
    assert store.spec == {"features": 2, "context": 0}
    assert store.provenance["columns"] == {"x": ["a", "b"]}
    np.testing.assert_array_equal(store.array("train", "x"), ROWS[:8])
    np.testing.assert_array_equal(store.array("test", "x"), ROWS[8:])


def test_model_1():
    flow = VectorFlow.from_pretrained(GOLDEN / "model_v1")
    assert isinstance(flow, NSF)
    expected = json.loads((GOLDEN / "model_v1_log_prob.json").read_text())
    with torch.no_grad():
        np.testing.assert_allclose(flow.log_prob(torch.from_numpy(ROWS)).numpy(), expected, atol=1e-4)
    assert pretrained.verify(GOLDEN / "model_v1") is not None


@pytest.mark.parametrize("name", KINDS)
def test_models_1(name):
    """Old files have the old names of weights and keep their density."""
    flow = KINDS[name].from_pretrained(GOLDEN / "models_v1" / name)
    expected = torch.tensor(json.loads((GOLDEN / "models_v1" / "expected.json").read_text())[name])
    torch.testing.assert_close(measure(flow), expected, atol=1e-4, rtol=1e-4)


def test_every_golden_model_is_read():
    assert set(KINDS) == {path.name for path in (GOLDEN / "models_v1").iterdir() if path.is_dir()}


def test_config_1(tmp_path):
    options = yaml.safe_load((GOLDEN / "config_v1.yaml").read_text())
    options |= {"out": str(tmp_path / "run")}
    options["data"]["store"] = str(GOLDEN / "store_v1.h5")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(options))
    command(train)(["--config", str(tmp_path / "config.yaml")])
    assert json.loads((tmp_path / "run/model/training.json").read_text())["steps"] == 4


def test_a_run_of_an_older_version_is_resumed(tmp_path):
    """Settings that its version did not have are as by default."""
    test_config_1(tmp_path)
    saved = tmp_path / "run" / "config.yaml"
    older = yaml.safe_load(saved.read_text())
    del older["model"]["recompute"], older["model"]["round_trip_examples"], older["keep"], older["save_every"]
    saved.write_text(yaml.safe_dump(older))
    command(train)(["--config", str(tmp_path / "config.yaml"), "--resume", "--trainer.max_epochs", "3"])
    assert json.loads((tmp_path / "run/model/training.json").read_text())["steps"] == 6


def test_an_older_config_of_a_model_is_brought_to_the_newest_form(tmp_path, monkeypatch):
    shutil.copytree(GOLDEN / "model_v1", tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(pretrained, "FORMAT_VERSION", 3)
    monkeypatch.setattr(
        pretrained,
        "MIGRATIONS",
        {
            1: lambda config: {**config, "arguments": {**config["arguments"], "bound": 2.5}},
        },
    )
    assert VectorFlow.from_pretrained(tmp_path)._arguments["bound"] == 2.5


def test_an_older_store_is_brought_to_the_newest_form(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "FORMAT_VERSION", 2)
    monkeypatch.setattr(store_module, "MIGRATIONS", {1: lambda attributes: {**attributes, "domain": "renamed"}})
    assert Store(GOLDEN / "store_v1.h5").domain == "renamed"


@pytest.mark.parametrize("newer", [1, 98])
def test_newer_files_are_refused_with_what_is_needed(newer, tmp_path):
    known, version = pretrained.FORMAT_VERSION, pretrained.FORMAT_VERSION + newer
    shutil.copytree(GOLDEN / "model_v1", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "format_version": version}))
    with pytest.raises(UserError, match=f"format version {version}, this arflows reads up to {known}: install a newer"):
        VectorFlow.from_pretrained(tmp_path / "model")
    known, version = store_module.FORMAT_VERSION, store_module.FORMAT_VERSION + newer
    shutil.copy(GOLDEN / "store_v1.h5", tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file.attrs["format_version"] = version
    with pytest.raises(
        UserError, match=f"format version {version}, newer than the {known} that this arflows reads: update"
    ):
        Store(tmp_path / "s.h5")


@pytest.mark.parametrize("version", [0, -1])
def test_versions_that_never_were_are_refused(version, tmp_path):
    shutil.copytree(GOLDEN / "model_v1", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "format_version": version}))
    with pytest.raises(UserError, match="which never existed"):
        VectorFlow.from_pretrained(tmp_path / "model")
    shutil.copy(GOLDEN / "store_v1.h5", tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file.attrs["format_version"] = version
    with pytest.raises(UserError, match="damaged"):
        Store(tmp_path / "s.h5")
