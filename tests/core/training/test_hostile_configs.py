"""Malicious configs, refused before anything is imported or called."""

import json
import sys

import numpy as np
import pytest
import yaml

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.pretrained import CONFIG_FILE, Pretrained
from arflows.data.store_writer import write_store
from arflows.tabular import train
from tests.launch import command
from tests.tabular.conftest import recipe


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module on the path that leaves a trace when it is imported."""
    (tmp_path / "evil_module.py").write_text(
        f"open({str(tmp_path / 'harm')!r}, 'w')\n"
        "from arflows.core.flows import NSF\n"
        "class Evil(NSF): pass\n"
        "def harm(*args, **kwargs): open('harm', 'w')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "harm"
    sys.modules.pop("evil_module", None)


@pytest.fixture
def options(tmp_path):
    write_store(
        tmp_path / "s.h5",
        domain="tabular",
        spec={"features": 2, "context": 0},
        splits={"train": {"x": np.zeros((200, 2), np.float32)}},
        provenance={"columns": {"x": ["a", "b"]}},
    )
    return recipe(tmp_path / "s.h5", 2) | {"out": str(tmp_path / "run")}


def at(options, place, value):
    *way, last = place.split(".")
    for key in way:
        options = options[key]
    options[last] = value


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("model.flow", {"class_path": "evil_module.Evil", "init_args": {"features": 2}}),
        ("model.flow", "evil_module.Evil"),
        ("model.flow", {"class_path": "os.system", "init_args": {"command": "touch harm"}}),
        ("model.flow", {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "harm"]}}),
        ("trainer.callbacks", {"class_path": "evil_module.Evil"}),
        ("trainer.callbacks", [{"class_path": "evil_module.harm"}]),
        (
            "trainer.callbacks",
            {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_fit_start": "os.abort"}},
        ),
        (
            "trainer.callbacks",
            {"class_path": "EarlyStopping", "init_args": {"monitor": {"class_path": "evil_module.Evil"}}},
        ),
        ("trainer.logger", {"class_path": "evil_module.Evil"}),
        ("trainer.strategy", {"class_path": "evil_module.Evil"}),
        ("trainer.profiler", {"class_path": "evil_module.Evil"}),
        ("trainer.plugins", {"class_path": "evil_module.Evil"}),
        ("model.flow.init_args.hidden_features", {"class_path": "evil_module.Evil"}),
        ("data.store", {"class_path": "evil_module.Evil"}),
    ],
)
def test_other_classes_are_refused(place, value, options, evil, tmp_path, fails, monkeypatch):
    monkeypatch.chdir(tmp_path)
    at(options, place, value)
    path = tmp_path / "evil.yaml"
    path.write_text(yaml.safe_dump(options))
    fails(2, command(train), ["--config", str(path)])
    assert not evil.exists()
    assert "evil_module" not in sys.modules
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch harm']", "!!python/name:os.system", "!harm x"]
)
def test_yaml_that_makes_objects_is_refused(tag, options, tmp_path, fails, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.yaml"
    path.write_text(yaml.safe_dump(options) + f"seed: {tag}\n")
    assert str(path) in fails(2, command(train), ["--config", str(path)])
    assert not (tmp_path / "harm").exists()


def test_yaml_that_unfolds_without_end_is_refused(tmp_path, fails):
    """Nine levels of nine references each: four hundred million values in three hundred bytes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines) + "\n")
    assert str(path) in fails(2, command(train), ["--config", str(path)])


@pytest.mark.report
def test_the_help_lists_only_classes_that_may_be_named(capsys):
    with pytest.raises(SystemExit, match="0"):
        command(train)(["--help"])
    text = capsys.readouterr().out
    assert "CSVLogger" in text
    assert "EarlyStopping" in text
    assert "WandbLogger" not in text
    assert "StochasticWeightAveraging" not in text


def test_known_callbacks_may_be_named(options, tmp_path):
    stop = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "train/nats"}}
    at(options, "trainer.callbacks", [stop, {"class_path": "LearningRateMonitor"}])
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(options))
    experiment = train.TableExperiment(["--config", str(path)])
    names = {type(callback).__name__ for callback in experiment.trainer.callbacks}
    assert {"EarlyStopping", "LearningRateMonitor"} <= names


@pytest.mark.parametrize("name", ["evil_module.Evil", "os.system", "Popen", "Linear", "FlowTraining", "__class__", ""])
def test_a_model_folder_names_models_alone(name, evil, tmp_path):
    (tmp_path / "model").mkdir()
    config = {"format_version": 1, "class": name, "arguments": {}}
    (tmp_path / "model" / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(UserError, match="holds a model of class"):
        Pretrained.from_pretrained(tmp_path / "model")
    assert not evil.exists()


def test_weights_with_an_over_long_header_are_refused(tmp_path):
    from arflows.core.flows import MAF

    MAF(2, transforms=1, hidden_features=[4]).save_pretrained(tmp_path)
    for length in (2**63, 10**9, 2**64 - 1):
        (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b'{"a": ' + b"[" * 1000)
        with pytest.raises(UserError, match="is damaged or truncated"):
            MAF.from_pretrained(tmp_path)
