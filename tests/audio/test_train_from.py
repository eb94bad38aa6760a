"""Training on from a trained model: ``--from``."""

import json

import numpy as np
import pytest

from arflows.audio import train
from arflows.audio.datamodule import SpeechDataModule
from arflows.audio.prepare import prepare
from arflows.audio.representation import MelSpec
from arflows.core.runtime.errors import UserError
from tests.launch import command
from tests.train_from import starts_where_it_ended

pytestmark = pytest.mark.report


def test_training_on_starts_from_the_density_of_the_model(recipe, run_folder, tmp_path):
    starts_where_it_ended(train, recipe, run_folder, tmp_path / "on")


def test_speakers_keep_the_numbers_that_the_model_knows(speech):
    data = SpeechDataModule(speech)
    names, before = data.speaker_names, data.dataset("test")
    turned = ["zoe", *reversed(names)]
    data.number_speakers(turned)
    after = data.dataset("test")
    for index in range(len(before)):
        first, second = (int(dataset.__getitems__([index])["speaker"]) for dataset in (before, after))
        assert names[first] == turned[second]
    with pytest.raises(UserError, match=f"knows no speaker '{names[0]}'"):
        SpeechDataModule(speech).number_speakers(names[1:])


def test_the_names_of_the_speakers_are_kept(recipe, speaker_run, tmp_path):
    words = ["--config", recipe, "--from", speaker_run, "--out", tmp_path / "on", "--trainer.max_epochs", 1]
    command(train)([str(word) for word in [*words, "--trainer.limit_val_batches", 1]])
    facts = [json.loads((run / "model/training.json").read_text()) for run in (speaker_run, tmp_path / "on")]
    assert facts[0]["data"]["speakers"] == facts[1]["data"]["speakers"]


def test_other_mel_settings_are_refused(recipe, run_folder, tmp_path, capsys):
    prepare("espeak", tmp_path / "other.h5", limit=8, mel=MelSpec(hop=128))
    words = ["--config", recipe, "--from", run_folder, "--out", tmp_path / "on", "--data.store", tmp_path / "other.h5"]
    with pytest.raises(SystemExit):
        command(train)([str(word) for word in words])
    message = capsys.readouterr().err
    assert "hop 256 ≠ 128" in message
    assert "prepare a store with the settings of" in message
    assert not np.any([path.suffix == ".ckpt" for path in tmp_path.rglob("*")])
