"""Mel spectrograms are librosa's, and their settings travel with data and models."""

import librosa
import numpy as np
import pytest
import torch

from arflows.audio.representation import MelSpec, log_mel
from arflows.core.runtime.errors import UserError

SPECS = {
    "default": MelSpec(),
    "centre": MelSpec(padding="centre"),
    "short window": MelSpec(n_fft=1024, window=800, hop=200),
    "energies, log10": MelSpec(power=2.0, log_base="10", floor=1e-10),
    "24 kHz": MelSpec(sample_rate=24_000, n_fft=2048, window=1200, hop=300, bands=100, fmin=20, fmax=12_000),
    "centre, hop past the half": MelSpec(n_fft=512, window=512, hop=300, padding="centre"),
}


def speechlike(seconds: float, rate: int) -> np.ndarray:
    """Voiced and unvoiced stretches, with the noise of 16 bits between them."""
    rng = np.random.default_rng(0)
    time = np.arange(int(seconds * rate)) / rate
    voiced = sum(np.sin(2 * np.pi * 140 * k * time + k) / k for k in range(1, 30)) * (np.sin(7 * time) > 0)
    unvoiced = rng.standard_normal(len(time)) * (np.sin(5 * time) > 0.3)
    dithered = 32_768 * (0.1 * voiced + 0.02 * unvoiced) + rng.uniform(-1, 1, len(time))
    return (dithered.round() / 32_768).astype(np.float32)


def librosas(waveform: np.ndarray, spec: MelSpec) -> np.ndarray:
    if spec.padding == "same":
        pad = (spec.n_fft - spec.hop) // 2
        waveform = np.pad(waveform, (pad, pad), mode="reflect")
    mel = librosa.feature.melspectrogram(
        y=waveform,
        sr=spec.sample_rate,
        n_fft=spec.n_fft,
        hop_length=spec.hop,
        win_length=spec.window,
        center=spec.padding == "centre",
        pad_mode="reflect",
        power=spec.power,
        n_mels=spec.bands,
        fmin=spec.fmin,
        fmax=spec.fmax,
    )
    logarithm = np.log if spec.log_base == "e" else np.log10
    return logarithm(np.maximum(mel, spec.floor))


@pytest.mark.parametrize("name", SPECS)
def test_agrees_with_librosa(name):
    spec = SPECS[name]
    waveform = speechlike(1.5, spec.sample_rate)
    waveform = waveform[: len(waveform) // spec.hop * spec.hop]
    frames = len(waveform) // spec.hop
    for dtype in (np.float32, np.float64):
        ours = log_mel(torch.from_numpy(waveform.astype(dtype))[None], spec)
        assert ours.shape == (1, spec.bands, frames)
        theirs = librosas(waveform.astype(dtype), spec)[:, :frames]
        np.testing.assert_allclose(ours[0].numpy(), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SPECS)
def test_a_segment_with_its_margin_has_the_frames_of_the_whole(name):
    spec = SPECS[name]
    waveform = torch.from_numpy(speechlike(1.0, spec.sample_rate))[None].double()
    whole = log_mel(waveform, spec)
    before, after = spec.margin
    first, last = 12, 20
    around = waveform[:, first * spec.hop - before : last * spec.hop + after].clone()
    changed = torch.rand_like(waveform)
    changed[:, first * spec.hop - before : last * spec.hop + after] = around
    torch.testing.assert_close(log_mel(changed, spec)[..., first:last], whole[..., first:last])


def test_every_sample_has_a_frame():
    spec = MelSpec()
    for samples in (1024, 1025, 1279, 1280, 1281):
        assert log_mel(torch.zeros(1, samples), spec).shape[-1] == spec.frames(samples) == -(-samples // 256)


def test_silence_is_at_the_floor():
    mel = log_mel(torch.zeros(2, 2048), MelSpec())
    torch.testing.assert_close(mel, torch.full_like(mel, float(np.log(1e-5))))


def test_autocast_leaves_mels_in_float32():
    waveform = torch.from_numpy(speechlike(0.2, 22_050))[None]
    expected = log_mel(waveform, MelSpec())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(log_mel(waveform, MelSpec()), expected)


def test_too_short_is_refused():
    with pytest.raises(UserError, match="1023 samples is too short: the mel settings need 1024"):
        log_mel(torch.zeros(1, 1023), MelSpec())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fmax": 12_000.0}, "between 0 and half the sample rate"),
        ({"hop": 2048}, "do not fit: the hop"),
        ({"hop": 255}, "is odd"),
        ({"bands": 0}, "bands is 0"),
        ({"padding": "left"}, "padding is 'left'"),
        ({"log_base": "2"}, "log_base is '2'"),
    ],
)
def test_impossible_settings_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        MelSpec(**settings)


def test_settings_survive_a_dictionary_and_name_their_differences():
    spec = MelSpec(hop=300, window=900)
    assert MelSpec.from_dict(spec.as_dict()) == spec
    assert MelSpec().differences(spec) == ["hop 256 ≠ 300", "window 1024 ≠ 900"]
    assert spec.fingerprint() != MelSpec().fingerprint()
    with pytest.raises(UserError, match="settings must be sample_rate"):
        MelSpec.from_dict({"rate": 1})


class TestCheckMel:
    spec = MelSpec()
    good = log_mel(torch.from_numpy(speechlike(0.5, 22_050))[None], spec)

    @pytest.mark.report
    def test_accepts_its_own_even_at_full_scale(self):
        self.spec.check_mel(self.good)
        self.spec.check_mel(log_mel(torch.ones(1, 4096), self.spec))
        self.spec.check_mel(log_mel(torch.sin(torch.arange(8192.0))[None].sign(), self.spec))

    @pytest.mark.report
    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (lambda mel: mel[:, :64], "has 64 bands, the model 80"),
            (lambda mel: mel.mT, "transpose it, frames come last"),
            (lambda mel: mel[..., :0], "no frames"),
            (lambda mel: mel[0, :, 0], "no bands"),
            (lambda mel: mel.round().int(), "not finite floats"),
            (lambda mel: mel * torch.tensor(float("nan")), "not finite floats"),
            (lambda mel: 20 / np.log(10) * mel, "looks like decibels"),
            (lambda mel: mel - 3, "another logarithm, floor or scale"),
            (lambda mel: mel + 12, "another logarithm, floor or scale"),
        ],
    )
    def test_refuses_others(self, change, sentence):
        with pytest.raises(UserError, match=sentence):
            self.spec.check_mel(change(self.good), "file.npy")
