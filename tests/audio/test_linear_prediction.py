"""Linear prediction from mel spectrograms: the recursion, stability, the bijection."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import torch

from arflows.audio import MelSpec, log_mel
from arflows.audio.linear_prediction import (
    Envelope,
    LinearPrediction,
    autocorrelation,
    conditioned,
    filters,
    levinson_durbin,
    predict,
)
from arflows.audio.pitch import PitchTracker, correlations, lags, track
from arflows.core.runtime.errors import UserError

SPEC = MelSpec()


def noise(seconds=2.0, seed=0) -> torch.Tensor:
    """Noise with two resonances."""
    white = np.random.default_rng(seed).standard_normal(int(seconds * 22_050))
    poles = [0.97 * np.exp(1j * 0.2), 0.95 * np.exp(1j * 0.8)]
    a = np.real(np.poly([*poles, *np.conj(poles)]))
    return torch.from_numpy(0.01 * scipy.signal.lfilter([1.0], a, white))[None]


def test_recursion_solves_the_normal_equations():
    r = torch.from_numpy(
        np.stack([np.correlate(x, x, "full")[199:212] for x in np.random.default_rng(0).standard_normal((3, 200))])
    )
    a, error, reflections = levinson_durbin(r)
    for row in range(3):
        expected = scipy.linalg.solve_toeplitz(r[row, :-1].numpy(), r[row, 1:].numpy())
        np.testing.assert_allclose(a[row].numpy(), expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(float(error[row]), float(r[row, 0] - a[row] @ r[row, 1:]), rtol=1e-9)
    assert reflections.abs().max() < 1


@pytest.mark.parametrize("kind", ["noise", "floor", "loudest", "one_band", "steps", "beyond"])
def test_filters_of_any_mel_spectrogram_are_stable_and_finite(kind):
    mel = torch.full((1, 80, 12), math.log(1e-5), dtype=torch.float64)
    match kind:
        case "noise":
            mel = torch.randn(mel.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
        case "loudest":
            mel.fill_(math.log(1024))
        case "one_band":
            mel[:, 10] = math.log(1024)
        case "steps":
            mel[:, ::2] = math.log(1024)
        case "beyond":
            mel[:, 5] = 1e6
    log_amplitude = Envelope(SPEC)(mel)
    found = filters(log_amplitude, SPEC, 48, 4)
    r = conditioned(autocorrelation(log_amplitude, SPEC, 48), SPEC.sample_rate)
    assert levinson_durbin(r)[2].abs().max() < 1
    assert all(part.isfinite().all() for part in found)
    assert (found.gain > 0).all()
    radius = max(np.abs(np.roots([1.0, *(-found.coefficients[0, sub].numpy())])).max() for sub in (0, 17, -1))
    assert radius < 1


def test_mel_spectrogram_predicts_almost_as_well_as_the_waveform_itself():
    """The error is within a decibel of the innovation of a known all-pole process, the least that there can be."""
    waveform = noise()
    frames = waveform.shape[1] // 256
    waveform = waveform[:, : frames * 256]
    log_amplitude = Envelope(SPEC)(log_mel(waveform, SPEC))
    found = filters(log_amplitude, SPEC, 32, 4)
    inner = waveform[:, 256:-256]
    e = inner - predict(inner, found.coefficients)
    e = e[:, 512:-512]
    ratio = float(e.square().mean() / 0.01**2)
    assert 0 <= 10 * math.log10(ratio) < 1.0
    scaled = e / found.gain.repeat_interleave(64, 1)[:, 512:-512]
    assert 0.85 < float(scaled.std()) < 1.15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bijection_inverts_with_its_log_determinant(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 24, generator=generator, dtype=dtype)
    context = torch.cat(
        [0.2 * torch.randn(2, 3, 4, generator=generator), torch.randn(2, 3, 1, generator=generator)], 2
    ).to(dtype)
    bijection = LinearPrediction()
    z, log_det = bijection(x, context)
    back, log_det_back = bijection.inverse(z, context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det_back, -log_det)
    jacobian = torch.autograd.functional.jacobian(lambda one: bijection(one[None], context[:1])[0][0], x[0])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[0])


def test_bijection_refuses_what_does_not_fit():
    with pytest.raises(UserError, match="needs the coefficients"):
        LinearPrediction()(torch.zeros(1, 8))
    with pytest.raises(UserError, match="not a multiple of 3 sub-frames"):
        LinearPrediction()(torch.zeros(1, 8), torch.zeros(1, 3, 5))


def test_levels_above_the_bands_are_learned_from_waveforms():
    """High-pass noise beside low-pass noise: before, the highest band goes on; after, the truth is known."""
    generator = np.random.default_rng(0)
    low, high = (scipy.signal.butter(8, 9000, kind, fs=22_050, output="sos") for kind in ("low", "high"))
    white = 0.1 * generator.standard_normal((8, 256 * 40))
    waveform = torch.from_numpy(scipy.signal.sosfilt(low, white) + 0.01 * scipy.signal.sosfilt(high, white))
    envelope = Envelope(SPEC)
    mel = log_mel(waveform, SPEC)
    before = envelope(mel)[:, 5:-5, 460:].mean()
    envelope.initialize_from(waveform)
    after = envelope(mel)[:, 5:-5, 460:].mean()
    truth = math.log(0.001) + 0.5 * math.log(384)
    assert abs(after - truth) < 0.3
    assert abs(before - truth) > 1.5


# ------------------------------------------------------------------------------------------------------------ pitch


def pulses(pitch, seconds=1.0) -> torch.Tensor:
    time = np.arange(int(seconds * 22_050)) / 22_050
    phase = np.cumsum(np.broadcast_to(pitch(time), time.shape)) / 22_050
    wave = sum(np.cos(2 * np.pi * k * phase) / k for k in range(1, 20))
    return torch.from_numpy(0.05 * wave + 0.0005 * np.random.default_rng(0).standard_normal(len(time)))[None]


@pytest.mark.parametrize("hertz", [110.0, 160.0, 220.0, 300.0])
def test_lag_is_the_period_of_a_steady_pitch(hertz):
    mel = log_mel(pulses(lambda _: hertz), SPEC)
    found = track(correlations(Envelope(SPEC)(mel), SPEC), SPEC)
    inner = 22_050 / found.lag[0, 10:-10].double()
    assert (torch.log2(inner / hertz).abs() < 0.07).double().mean() > 0.95


def test_lag_follows_a_glide():
    waveform = pulses(lambda time: 150 + 100 * time)
    found = track(correlations(Envelope(SPEC)(log_mel(waveform, SPEC)), SPEC), SPEC)
    time = (torch.arange(found.lag.shape[1]) + 0.5) * 256 / 22_050
    error = torch.log2(22_050 / found.lag[0].double() / (150 + 100 * time)).abs()
    assert (error[8:-8] < 0.07).double().mean() > 0.9


def test_lags_do_not_depend_on_how_frames_arrive():
    correlation = torch.rand(
        2, 40, lags(SPEC)[1] - lags(SPEC)[0] + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    whole = track(correlation, SPEC).lag
    tracker, parts, start = PitchTracker(2, SPEC), [], 0
    for size in (1, 3, 1, 17, 2, 16):
        parts.append(tracker.track(correlation[:, start : start + size], ended=start + size == 40))
        start += size
    assert torch.equal(torch.cat(parts, 1), whole)
    short = track(correlation[:, :3], SPEC).lag
    assert short.shape == (2, 3)
