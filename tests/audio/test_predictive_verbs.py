"""PredictiveFlow from training to figures, by the verbs of the command line."""

import csv
import io
import json
import types

import numpy as np
import pytest
import soundfile
import torch
import yaml

from arflows.audio import PredictiveFlow, evaluate, log_mel, sample, score, stream, train
from arflows.audio.model import SpeechFlow
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.pretrained import load_model
from arflows.data.store import Store
from tests.launch import command

RATE = 22_050


@pytest.fixture(scope="module")
def run(tmp_path_factory, speech):
    """The folder of a finished run of some steps."""
    folder = tmp_path_factory.mktemp("predictive")
    flow = {"order": 16, "channels": 8, "dilations": [1, 2, 4], "width": 8, "features": 8}
    options = {
        "out": str(folder / "run"),
        "model": {
            "flow": {"class_path": "arflows.audio.PredictiveFlow", "init_args": flow},
            "learning_rate": 0.003,
            "round_trip_examples": 1,
        },
        "data": {"store": str(speech), "batch_size": 4, "segment": 2048},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False,
                    "limit_val_batches": 1},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(options))
    command(train)(["--config", str(folder / "recipe.yaml")])
    return folder / "run"


def test_training_initialises_improves_and_writes_a_clip(run):
    flow = load_model(SpeechFlow, str(run), "cpu")
    assert isinstance(flow, PredictiveFlow)
    assert flow.envelope.initialized
    assert flow.head.out.weight.any()
    facts = json.loads((run / "model" / "training.json").read_text())
    assert np.isfinite(facts["val"]["value"])
    clips = sorted((run / "samples").glob("*.wav"))
    assert clips
    assert soundfile.info(clips[-1]).samplerate == RATE


def test_score_curves_are_those_of_the_density(run, speech, tmp_path):
    words = ["--model", run, "--speech", speech, "--limit", 1, "--out", tmp_path / "s.csv", "--curves", tmp_path / "c"]
    command(score)([str(word) for word in words])
    with (tmp_path / "s.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    flow, store = load_model(SpeechFlow, str(run), "cpu"), Store(speech)
    waveform = torch.from_numpy(store.ragged("test", "waveforms")[0].astype(np.float32) / 32_768)[None]
    mel = torch.from_numpy(store.ragged("test", "mels")[0].astype(np.float32)).T[None]
    with torch.no_grad():
        expected = float(flow.log_prob(waveform, mel=mel)) / waveform.shape[1]
    assert float(row["log_likelihood"]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.report
def test_figures_and_temperatures(run, speech, tmp_path):
    words = ["--model", run, "--store", speech, "--limit", 1, "--perceptual", "false", "--temperature", 0.7]
    words += ["--temperature_unvoiced", 0.9, "--out", tmp_path / "e.json"]
    command(evaluate)([str(word) for word in words])
    result = json.loads((tmp_path / "e.json").read_text())
    assert result["model"]["class"] == "PredictiveFlow"
    assert result["options"]["temperature_unvoiced"] == 0.9
    assert {"mcd", "mrstft", "voicing_f1", "tones"} <= set(result["quality"])


def test_sample_from_a_recording_and_a_gap(run, speech, tmp_path):
    words = ["--model", run, "--speech", speech, "--limit", 1]
    command(sample)([str(word) for word in [*words, "--out", tmp_path / "copy"]])
    (wav,) = (tmp_path / "copy").glob("*.wav")
    assert soundfile.info(wav).frames == len(Store(speech).ragged("test", "waveforms")[0])
    command(sample)([str(word) for word in [*words, "--out", tmp_path / "gap", "--gap", "[0.2,0.21]"]])
    with pytest.raises(SystemExit):
        command(sample)([str(w) for w in [*words, "--out", tmp_path / "no", "--gap", "[0.2,0.21]",
                                          "--temperature_unvoiced", 0.9]])  # fmt: skip


@pytest.mark.parametrize("given", ["mel", "audio"])
def test_stream_writes_audio_as_long_as_what_it_reads(run, speech, monkeypatch, given):
    audio = Store(speech).ragged("test", "waveforms")[0][: 40 * 256]
    flow = load_model(SpeechFlow, str(run), "cpu")
    mel = log_mel(torch.from_numpy(audio.astype(np.float32) / 32_768)[None], flow.spec)
    content = audio.astype("<i2") if given == "audio" else mel[0].mT.contiguous().numpy().astype("<f4")
    heard = io.BytesIO()
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(content.tobytes())))
    monkeypatch.setattr("sys.stdout", types.SimpleNamespace(buffer=heard))
    stream.stream(str(run), given=given, device="cpu")
    samples = np.frombuffer(heard.getvalue(), "<i2")
    assert len(samples) == len(audio)
    assert samples.any()


def test_training_segments_bring_what_is_around_them(speech):
    from arflows.audio.datamodule import SpeechDataset

    store = Store(speech)
    dataset = SpeechDataset(store, "train", segment=2048, lead=2, surroundings=3)
    batch = dataset.__getitems__(list(range(8)))
    assert batch["x"].shape == (8, 2048 + 2 * 256)
    assert batch["mel"].shape == (8, 80, 8 + 2 + 6)
    spec = dataset.spec
    plain = SpeechDataset(store, "train", segment=2048).__getitems__(list(range(8)))
    torch.testing.assert_close(batch["x"][:, 512:], plain["x"])
    torch.testing.assert_close(batch["mel"][:, :, 5:13], plain["mel"])
    whole = SpeechDataset(store, "train")
    first = whole.__getitems__([0])
    full = SpeechDataset(store, "train", segment=first["mel"].shape[2] * 256, lead=2, surroundings=3)
    index = int(np.flatnonzero(full.kept == whole.kept[0])[0])
    alone = full.__getitems__([index])
    torch.testing.assert_close(alone["x"][:, 512:], first["x"])
    assert not alone["x"][:, :512].any()
    silence = torch.full((1, 80, 5), spec.silence)
    torch.testing.assert_close(alone["mel"][:, :, :5], silence)
    torch.testing.assert_close(alone["mel"][:, :, -3:], silence[:, :, :3])


def test_one_speaker_must_be_named_for_a_model_of_several(run, tmp_path):
    PredictiveFlow(speakers=2, channels=4, dilations=[1], width=4, features=4, order=4).save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match="several speakers: add --speaker"):
        stream.stream(str(tmp_path / "m"), device="cpu")
