"""Mel spectrograms of other settings are refused by a trained model, and right ones never are."""

import math

import numpy as np
import pytest
import torch

from arflows.audio import PredictiveFlow, WaveFlow, log_mel
from arflows.audio import sample as sampling
from arflows.audio.datamodule import SpeechDataset
from arflows.audio.streaming import stream
from arflows.core.runtime.errors import UserError
from arflows.data.store import Store
from tests.launch import command

pytestmark = pytest.mark.report
FRAMES = 12


@pytest.fixture(scope="module")
def flow(run_folder):
    return WaveFlow.from_pretrained(run_folder)


@pytest.fixture(scope="module")
def spoken(speech):
    """Waveforms of all splits, (1, samples) each."""
    sets = [SpeechDataset(Store(speech), split) for split in Store(speech).splits]
    return [data.__getitems__([index])["x"] for data in sets for index in range(len(data))]


CHANGES = {
    "common logarithm": (lambda mel: mel / math.log(10), "common logarithm"),
    "magnitudes": (lambda mel: mel.exp(), "magnitudes without their logarithm"),
    "mean and variance": (
        lambda mel: (mel - mel.mean(2, keepdim=True)) / mel.std(2, keepdim=True).clamp_min(1e-3),
        "zero mean and unit variance",
    ),
    "decibels": (lambda mel: 20 / math.log(10) * mel, "decibels"),
    "turned": (lambda mel: mel.mT, "turn it|has 80 bands and"),
    "nan": (lambda mel: torch.where(mel == mel.max(), math.nan, mel), "not finite"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("short", [False, True])
def test_other_settings_are_named(flow, spoken, change, short):
    changed, likely = CHANGES[change]
    mels = [log_mel(waveform, flow.spec) for waveform in spoken]
    if short:  # from the middle, where there is speech
        mels = [mel[..., mel.shape[2] // 2 : mel.shape[2] // 2 + FRAMES] for mel in mels]
    refused = 0
    for mel in map(changed, mels):
        waveform = torch.zeros(1, mel.shape[-1] * flow.spec.hop)
        try:
            flow.sample(mel=mel)
        except UserError:
            with pytest.raises(UserError, match=likely):
                flow.log_prob(waveform, mel=mel)
            refused += 1
    # A quarter of a second may be too little to tell the bases of logarithms apart.
    doubtful = short and change == "common logarithm"
    assert refused >= len(mels) // 2 if doubtful else refused == len(mels)


def test_a_folder_of_mels_names_the_one_that_is_wrong(run_folder, spoken, flow, tmp_path, capsys):
    mel = log_mel(spoken[0], flow.spec)[0, :, :FRAMES]
    (tmp_path / "mels").mkdir()
    np.save(tmp_path / "mels/good.npy", mel.numpy())
    np.save(tmp_path / "mels/wrong.npy", mel.numpy() / math.log(10))
    command(sampling)(["--model", str(run_folder), "--speech", str(tmp_path / "mels"), "--out", str(tmp_path / "out")])
    assert [path.name for path in (tmp_path / "out").glob("*.wav")] == ["good.wav"]
    assert "skipped: wrong.npy: looks like the common logarithm" in capsys.readouterr().out


def test_streams_refuse_them_too(flow, spoken):
    mel = log_mel(spoken[0], flow.spec) / math.log(10)
    with pytest.raises(UserError, match="common logarithm"):
        list(stream(flow, iter(mel.split(FRAMES, 2))))


def others(flow):
    """Sounds that are no speech, at several levels."""
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(1, 32 * flow.spec.hop, generator=generator)
    time = torch.arange(white.shape[1]) / flow.spec.sample_rate
    sounds = {
        "white noise": white / 3,
        "brown noise": white.cumsum(1) / white.cumsum(1).abs().max(),
        "tone": (2 * math.pi * 440 * time).sin()[None],
        "chord": sum((2 * math.pi * 110 * k * time).sin() / k for k in range(1, 40))[None] / 4,
        "square": (2 * math.pi * 150 * time).sin().sign()[None],
        "clicks": (torch.arange(white.shape[1]) % 1000 == 0).float()[None],
    }
    return {name: [10 ** (-level / 20) * sound for level in range(0, 90, 6)] for name, sound in sounds.items()}


def test_right_ones_are_accepted_whatever_they_hold(flow, spoken):
    check = flow.training_mels.check
    for name, waveforms in others(flow).items():
        for waveform in waveforms:
            check(log_mel(waveform.clamp(-1, 1), flow.spec), name)
    check(torch.full((1, flow.spec.bands, 20), flow.spec.silence))
    for waveform in spoken:
        for gain in (0.01, 0.1, 1.0, 1 / float(waveform.abs().max())):
            mel = log_mel(gain * waveform, flow.spec)
            check(mel)
            for start in range(0, mel.shape[2] - FRAMES, 4):
                check(mel[..., start : start + FRAMES])


def test_statistics_are_those_of_the_training_data_and_stay(flow, spoken, tmp_path):
    mels = torch.cat([log_mel(waveform, flow.spec) for waveform in spoken], 2)[0]
    known = flow.training_mels
    assert known.initialized
    torch.testing.assert_close(known.mean, mels.mean(1), atol=0.7, rtol=0)
    torch.testing.assert_close(known.spread, mels.std(1), atol=0.5, rtol=0)
    assert (known.lowest < known.mean).all()
    assert (known.highest > known.mean + known.spread).all()
    before = known.mean.clone()
    flow.initialize(torch.zeros(1, 10 * flow.spec.hop), mel=torch.zeros(1, flow.spec.bands, 10))
    assert torch.equal(known.mean, before)
    flow.save_pretrained(tmp_path)
    assert torch.equal(WaveFlow.from_pretrained(tmp_path).training_mels.highest, known.highest)


@pytest.mark.parametrize("kind", [WaveFlow, PredictiveFlow])
def test_initialisation_keeps_them_and_files_without_them_load(kind, spoken):
    flow = kind(channels=4)
    mel = log_mel(spoken[0], flow.spec)
    whole = spoken[0][:, : mel.shape[2] * flow.spec.hop]
    state = {name: value for name, value in flow.state_dict().items() if not name.startswith("training_mels")}
    flow.initialize(whole, mel=mel)
    torch.testing.assert_close(flow.training_mels.mean, mel.mean((0, 2)))
    older = kind(channels=4)
    older.load_state_dict(state)
    assert not older.training_mels.initialized
    older.eval().training_mels.check(mel.exp())  # nothing is known, so that nothing is refused
