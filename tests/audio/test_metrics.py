"""Metrics of speech, with values computed by hand."""

import math

import librosa
import numpy as np
import pytest
import torch

from arflows.audio import metrics
from arflows.audio.metrics import (
    Mean,
    bits_per_sample,
    compare_pitch,
    dequantize,
    mel_cepstral_distortion,
    mel_distance,
    multi_resolution_stft,
    tones,
)
from arflows.audio.representation import MelSpec
from arflows.core.runtime.errors import UserError
from arflows.data.espeak import speak

RATE = 22_050
SPEC = MelSpec()


@pytest.fixture(scope="module")
def speech():
    spoken, rate = speak("The ferry turns round at the island.", "en-us+f2", 50, 170)
    assert rate == RATE
    return (spoken / 32_768 + 1e-4 * np.random.default_rng(0).standard_normal(len(spoken))).astype(np.float32)


def noisy(wave, level):
    return (wave + level * np.random.default_rng(1).standard_normal(len(wave))).astype(np.float32)


class TestMean:
    def test_of_utterances(self):
        mean = Mean.of(np.array([1.0, 2.0, 3.0, np.nan]))
        assert (mean.value, mean.count) == (2.0, 3)
        assert mean.standard_error == pytest.approx(1 / math.sqrt(3))
        assert mean.interval == pytest.approx((2 - 1.96 / math.sqrt(3), 2 + 1.96 / math.sqrt(3)))

    def test_nothing_known(self):
        assert Mean.of(np.array([np.nan])).as_dict() == {
            "value": None,
            "standard_error": None,
            "interval_95": None,
            "count": 0,
        }

    def test_ratio_counts_samples(self):
        assert Mean.ratio(np.array([10.0, 60.0]), np.array([10, 20])).value == pytest.approx(70 / 30)
        assert Mean.ratio(np.array([10.0, 20.0]), np.array([10, 20])).standard_error == pytest.approx(0)

    def test_the_interval_of_a_ratio_covers(self):
        rng, hits = np.random.default_rng(0), 0
        for _ in range(400):
            sizes = rng.integers(500, 2000, 60)
            totals = sizes * (5 + rng.standard_normal(60))
            low, high = Mean.ratio(totals, sizes).interval
            hits += low < 5 < high
        assert 360 <= hits <= 395


class TestLikelihood:
    def test_bits_of_noise(self):
        """Uniform noise over all 65,536 values takes 16 bits a sample; its density in [-1, 1] is 1/2."""
        assert bits_per_sample(1000 * math.log(0.5), 1000) == pytest.approx(16)

    def test_bits_bound_the_entropy_of_rounded_gaussians(self):
        """The density of a Gaussian of standard deviation s bounds the entropy of its 16-bit roundings tightly."""
        scale, count = 100 / 32_768, 200_000
        rng = np.random.default_rng(0)
        whole = np.rint(rng.standard_normal(count) * scale * 32_768) / 32_768
        x = dequantize(torch.from_numpy(whole), torch.Generator().manual_seed(0))
        log_prob = torch.distributions.Normal(0.0, scale).log_prob(x).sum().item()
        entropy = 0.5 * math.log2(2 * math.pi * math.e * 100**2)
        assert bits_per_sample(log_prob, count) == pytest.approx(entropy, abs=0.01)

    def test_noise_stays_within_the_step(self):
        x = torch.randint(-32_768, 32_768, (10_000,)).double() / 32_768
        noise = (dequantize(x) - x) * 32_768
        assert noise.abs().max() <= 0.5
        assert noise.std() == pytest.approx(1 / math.sqrt(12), rel=0.03)
        assert torch.equal((dequantize(x) * 32_768).round() / 32_768, x)


class TestSpectra:
    @pytest.mark.parametrize(
        "measure",
        [
            lambda a, b: mel_cepstral_distortion(a, b, SPEC),
            lambda a, b: mel_distance(a, b, SPEC),
            multi_resolution_stft,
        ],
        ids=["mcd", "mel", "mrstft"],
    )
    def test_zero_of_itself_and_more_with_more_noise(self, speech, measure):
        values = [measure(speech, noisy(speech, level)) for level in (0.001, 0.01, 0.1)]
        assert measure(speech, speech) == 0
        assert 0 < values[0] < values[1] < values[2]

    def test_loudness_is_no_cepstral_distortion_but_a_mel_distance(self, speech):
        loud = noisy(speech, 0.01)  # nowhere near the floor, which is no factor
        assert mel_cepstral_distortion(loud, 2 * loud, SPEC) == pytest.approx(0, abs=1e-3)
        assert mel_distance(loud, 2 * loud, SPEC) == pytest.approx(math.log(2), rel=1e-3)

    def test_cepstral_distortion_is_the_distance_of_the_spectra_in_decibels(self, speech, monkeypatch):
        """A log-mel difference of a·cos(π m (k+½)/n), with m ≤ 13, is a distance of 20/ln 10 · a/√2 dB."""
        band = (torch.arange(80.0) + 0.5) * math.pi / 80
        difference = 0.3 * torch.cos(5 * band)
        mels = iter([difference[:, None].expand(-1, 7), torch.zeros(80, 7)])
        monkeypatch.setattr(metrics, "_mel", lambda wave, spec: next(mels))
        assert mel_cepstral_distortion(speech, speech, SPEC) == pytest.approx(20 / math.log(10) * 0.3 / math.sqrt(2))

    def test_convergence_of_silence_is_one(self, speech):
        assert multi_resolution_stft(speech, np.zeros_like(speech)) > 1


class TestTones:
    @pytest.mark.parametrize("height", [8, 16, 64])
    def test_a_tone_is_found_where_it_is(self, height):
        rng = np.random.default_rng(0)
        noise = 0.01 * rng.standard_normal(RATE).astype(np.float32)
        tone = 0.01 * np.sin(2 * np.pi * 3 / height * np.arange(RATE)).astype(np.float32)
        plain, with_tone = tones(noise, height, RATE), tones(noise + tone, height, RATE)
        assert len(plain) == height // 2 - 1
        assert abs(plain.mean()) < 3
        assert with_tone[2] > 12
        assert np.delete(with_tone, 2) == pytest.approx(np.delete(plain, 2), abs=2.5)


class TestPitch:
    def test_of_itself(self, speech):
        same = compare_pitch(speech, speech, RATE)
        assert same.rmse == 0
        assert same.voicing_f1 == 1

    def test_a_semitone_up(self, speech):
        higher = librosa.effects.pitch_shift(speech, sr=RATE, n_steps=1)
        changed = compare_pitch(speech, higher, RATE)
        assert 3 < changed.rmse < 40
        assert changed.voicing_f1 > 0.7

    def test_noise_is_not_voiced(self, speech):
        noise = noisy(np.zeros_like(speech), 0.1)
        changed = compare_pitch(speech, noise, RATE)
        assert changed.voicing_f1 < 0.3


class TestPerception:
    def test_more_noise_is_heard(self, speech):
        pytest.importorskip("pesq")
        pytest.importorskip("pystoi")
        for measure in (metrics.pesq_wideband, metrics.stoi):
            values = [measure(speech, noisy(speech, level), RATE) for level in (0.0, 0.01, 0.1)]
            assert values[0] > values[1] > values[2]

    def test_no_utterance_has_no_figure(self):
        pytest.importorskip("pesq")
        assert math.isnan(metrics.pesq_wideband(np.zeros(RATE, np.float32), np.zeros(RATE, np.float32), RATE))

    @pytest.mark.report
    def test_what_is_missing_is_named(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "pesq", None)
        with pytest.raises(UserError, match="pesq is not installed: `pip install pesq`"):
            metrics.optional("pesq")
