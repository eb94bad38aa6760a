"""Training: the run folder with its model, and refused settings."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from arflows import audio
from arflows.audio import WaveFlow, train
from arflows.audio.prepare import prepare
from arflows.audio.representation import MelSpec
from arflows.core.likelihood import Reference
from tests.launch import command


def fails(capsys, *words):
    with pytest.raises(SystemExit) as ending:
        command(train)([str(word) for word in words])
    return ending.value.code, capsys.readouterr().err.strip().splitlines()[-1]


def test_what_a_run_leaves(run_folder):
    facts = json.loads((run_folder / "model" / "training.json").read_text())
    assert facts["steps"] == 12
    assert facts["val"]["unit"] == "nats/sample"
    assert facts["val"]["kind"] == "density"
    assert facts["val"]["count"] == 24
    assert facts["data"]["speakers"] == ["ada", "ben", "cleo", "dan", "eve"]
    reference = Reference.load(run_folder)
    assert len(reference.scores) == 24
    assert abs(reference.mean - facts["val"]["value"]) < 1
    flow = WaveFlow.from_pretrained(run_folder / "model")
    assert flow.spec == MelSpec()
    clip, rate = soundfile.read(next(iter(sorted((run_folder / "samples").glob("*.wav")))))
    assert rate == 22_050
    assert 0.5 < len(clip) / rate <= 2.0
    assert np.abs(clip).max() > 0


def test_training_lowers_the_loss(tmp_path, recipe):
    words = ["--config", recipe, "--out", tmp_path / "run", "--trainer.max_epochs", 6, "--trainer.limit_val_batches", 2]
    command(train)([str(word) for word in [*words, "--model.learning_rate", 0.01]])
    log = (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    column = log[0].split(",").index("val/nats_per_dim")
    values = [float(line.split(",")[column]) for line in log[1:] if line.split(",")[column]]
    assert len(values) == 6
    assert values[-1] < values[0] - 0.2


def test_a_model_of_speakers(speaker_run):
    assert WaveFlow.from_pretrained(speaker_run / "model").speakers == 5


def test_an_unconditional_model(tmp_path, recipe):
    words = ["--config", recipe, "--out", tmp_path / "run", "--model.flow.init_args.conditional", "false"]
    command(train)([str(word) for word in [*words, "--trainer.max_epochs", 1, "--trainer.limit_val_batches", 1]])
    assert not WaveFlow.from_pretrained(tmp_path / "run" / "model").conditional
    assert list((tmp_path / "run" / "samples").glob("*.wav"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model.flow.init_args.speakers", "3"], "the model has 3 speakers"),
        (["--data.segment", "2000"], "segment is 2000: give a multiple of the hop 256"),
        (["--data.segment", "2560000"], "fewer than one batch"),
        (["--model.flow.init_args.height", "1"], "height=1 must be at least 2"),
        (["--data.store", "no.h5"], "there is no store no.h5"),
    ],
)
def test_what_does_not_fit_is_refused(capsys, tmp_path, recipe, words, sentence):
    code, told = fails(capsys, "--config", recipe, "--out", tmp_path / "run", *words)
    assert code == 2
    assert sentence in told
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.report
def test_other_mels_are_refused_by_the_name_of_the_setting(capsys, tmp_path, recipe):
    prepare("espeak", tmp_path / "s.h5", mel=MelSpec(fmax=11_025.0, bands=64), limit=4)
    code, told = fails(capsys, "--config", recipe, "--out", tmp_path / "run", "--data.store", tmp_path / "s.h5")
    assert code == 2
    assert "bands 80 ≠ 64, fmax 8000.0 ≠ 11025.0" in told


def test_a_resumed_run_is_the_run(tmp_path, recipe):
    common = ["--trainer.limit_val_batches", "1"]
    command(train)(["--config", str(recipe), "--out", str(tmp_path / "whole"), "--trainer.max_epochs", "2", *common])
    for epochs, more in ((1, []), (2, ["--resume"])):
        words = ["--config", str(recipe), "--out", str(tmp_path / "parts"), "--trainer.max_epochs", str(epochs)]
        command(train)([*words, *common, *more])
    whole, parts = (WaveFlow.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "parts"))
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], atol=1e-6, err_msg=name)


def test_every_recipe_describes_a_model_that_can_be_built():
    recipes = sorted((Path(train.__file__).parent / "recipes").glob("*.yaml"))
    assert len(recipes) >= 7
    for path in recipes:
        assert path.read_text().startswith("#")
        flow = yaml.safe_load(path.read_text())["model"]["flow"]
        kind = getattr(audio, flow["class_path"].removeprefix("arflows.audio."))
        assert sum(parameter.numel() for parameter in kind(**flow["init_args"]).parameters()) > 10_000
