import json
import subprocess
from unittest.mock import ANY

import numpy as np
import pytest
import torch
import yaml

from arflows.core.flows import NSF, VectorFlow
from arflows.core.likelihood import Reference
from arflows.data.store import Store
from arflows.data.store_writer import write_store
from arflows.tabular import train
from tests.launch import ARFLOWS, command

from .conftest import recipe


def test_a_run_leaves_model_checkpoints_logs_and_its_options(moons_run, moons):
    left = {path.relative_to(moons_run).as_posix() for path in moons_run.rglob("*") if path.is_file()}
    assert left >= {
        "config.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "logs/version_0/metrics.csv",
        "model/config.json",
        "model/model.safetensors",
        "model/training.json",
    }
    facts = json.loads((moons_run / "model/training.json").read_text())
    assert facts["val"]["unit"] == "nats"
    assert facts["val"]["kind"] == "density"
    assert facts["data"]["store"] == str(moons)
    assert facts["data"]["columns"] == {"x": ["x0", "x1"]}
    assert len(Reference.load(moons_run).scores) == 800


def test_the_model_takes_rows_in_their_own_units(houses_run, houses):
    flow = VectorFlow.from_pretrained(houses_run / "model")
    assert isinstance(flow, NSF)
    store = Store(houses)
    x, context = (torch.from_numpy(np.array(store.array("train", name))) for name in ("x", "context"))
    with torch.no_grad():
        log_density = flow.log_prob(x, context).mean().item()
        at_random = flow.log_prob(x, context.flip(0)).mean().item()
    # noise of standard deviation 0.5 · SCALE has this entropy, which training comes near
    known = -np.log(2 * np.pi * np.e * 0.25 * 1e3 * 0.01)
    assert known - 1 < log_density < known + 0.1
    assert at_random < log_density - 1  # the year matters
    samples = flow.sample(2000, torch.tensor([[1985.0]]), generator=torch.Generator().manual_seed(0))
    assert samples.mean(0).tolist() == pytest.approx([5e4, 1.0], rel=0.01)


def test_a_flow_without_context_leaves_that_of_the_store_aside(houses, tmp_path, ends):
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump(recipe(houses, 2)))
    assert ends(command(train), "--config", path, "--out", tmp_path / "run", "--trainer.max_epochs", 1)[0] == 0
    assert VectorFlow.from_pretrained(tmp_path / "run/model").context_features == 0


def test_resuming_equals_the_uninterrupted_run(moons_recipe, tmp_path, ends):
    words = ["--config", moons_recipe, "--trainer.max_epochs"]
    assert ends(command(train), *words, 1, "--out", tmp_path / "parts")[0] == 0
    assert ends(command(train), *words, 2, "--out", tmp_path / "parts", "--resume")[0] == 0
    assert ends(command(train), *words, 2, "--out", tmp_path / "whole")[0] == 0
    parts, whole = (VectorFlow.from_pretrained(tmp_path / name / "model") for name in ("parts", "whole"))
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["MAF", "MADE", "RealNVP", "NSFC"])
def test_other_flows_train(name, moons_recipe, tmp_path, ends):
    flow = {"class_path": f"arflows.core.flows.{name}", "init_args": {"features": 2, "hidden_features": [8]}}
    words = ["--config", moons_recipe, "--out", tmp_path, "--model.flow", json.dumps(flow), "--trainer.max_epochs", 1]
    assert ends(command(train), *words)[0] == 0
    assert type(VectorFlow.from_pretrained(tmp_path / "model")).__name__ == name


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data.store", "missing.h5"], "arflows tabular prepare --source … --out missing.h5"),
        (["--model.flow.init_args.features", "3"], "model ≠ store: features 3 ≠ 2; set features"),
        (["--model.flow.init_args.context", "1"], "model ≠ store: context 1 ≠ 0"),
        (["--model.flow", "arflows.vision.RealNVP"], "not correspond to a subclass of VectorFlow"),
        (["--model.flow.init_args.bound", "wide"], "bound"),
        (["--model.unit", "bits_per_dim"], "unit"),
        (["--data.batch_size", "1000"], "fewer than one batch of 1000"),
        (["--data.limit", "0"], "limit is 0"),
        (["--config", "nonsense"], "no file or recipe 'nonsense'"),
    ],
)
def test_bad_settings_are_one_sentence_and_leave_nothing(words, sentence, moons_recipe, tmp_path, ends):
    code, message, _ = ends(command(train), "--config", moons_recipe, "--out", tmp_path / "run", *words)
    assert code == 2
    assert sentence in message
    assert not (tmp_path / "run").exists()


def test_a_store_of_another_domain_is_refused(moons_recipe, tmp_path, ends):
    write_store(tmp_path / "s.h5", domain="audio", spec={}, splits={"train": {"x": np.zeros((4, 2))}})
    words = ["--config", moons_recipe, "--out", tmp_path / "run", "--data.store", tmp_path / "s.h5"]
    code, message, _ = ends(command(train), *words)
    assert code == 2
    assert "'audio', not 'tabular'" in message


@pytest.mark.report
@pytest.mark.parametrize("data", [{}, {"limit": 200}])
def test_a_run_that_ends_before_a_validation_leaves_a_model_and_can_go_on(data, moons, tmp_path, ends):
    """Also within an epoch: the rest of it is trained on after the resumption."""
    settings = recipe(moons, 2)
    settings["data"] |= data
    settings["trainer"] |= {"max_epochs": -1, "check_val_every_n_epoch": 4}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    words = ["--config", tmp_path / "recipe.yaml", "--trainer.max_steps"]
    code, _, printed = ends(command(train), *words, 3, "--out", tmp_path / "parts")
    assert code == 0
    assert "is the trained model" in printed
    assert (tmp_path / "parts/checkpoints/last.ckpt").is_file()
    assert ends(command(train), *words, 11, "--out", tmp_path / "parts", "--resume")[0] == 0
    assert ends(command(train), *words, 11, "--out", tmp_path / "whole")[0] == 0
    parts, whole = (VectorFlow.from_pretrained(tmp_path / name / "model") for name in ("parts", "whole"))
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.report
def test_a_trial_run_says_that_it_writes_no_model(moons_recipe, tmp_path, ends):
    words = ["--config", moons_recipe, "--out", tmp_path / "run", "--trainer.fast_dev_run", "true"]
    assert ends(command(train), *words) == (0, "", ANY)
    assert not (tmp_path / "run/model").exists()


@pytest.mark.report
@pytest.mark.parametrize(("given", "context"), [({}, 1), ({"features": 2, "context": 0}, 0), ({"features": 2}, 0)])
def test_a_flow_without_features_takes_them_and_the_context_from_the_store(houses, tmp_path, ends, given, context):
    settings = recipe(houses, 2)
    sizes = settings["model"]["flow"]["init_args"]
    for name in ("features", "context"):
        sizes.pop(name)
    sizes |= given
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    words = ["--config", tmp_path / "recipe.yaml", "--out", tmp_path / "run"]
    assert ends(command(train), *words, "--trainer.max_steps", 1)[:2] == (0, "")
    flow = VectorFlow.from_pretrained(tmp_path / "run/model")
    assert (flow.dims, flow.context_features) == (2, context)
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["model"]["flow"]["init_args"]
    assert (config["features"], config["context"]) == (2, context)


def test_without_features_a_missing_store_is_named(tmp_path, ends):
    code, message, _ = ends(command(train), "--config", "demo_plane", "--data.store", "missing.h5", "--out", tmp_path)
    assert code == 2
    assert "arflows tabular prepare --source … --out missing.h5" in message


@pytest.mark.report
def test_a_log_has_neither_bars_nor_advertisements(moons_recipe, tmp_path):
    settings = yaml.safe_load(moons_recipe.read_text())
    settings["trainer"].pop("enable_progress_bar")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    words = ["tabular", "train", "--config", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    done = subprocess.run([ARFLOWS, *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0
    log = done.stdout + done.stderr
    assert "is the trained model" in log
    for noise in ("\r", "Epoch", "v_num", "💡", "GPU available", "LeafSpec"):
        assert noise not in log
