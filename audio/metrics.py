"""Vocoder metrics: likelihood per sample, perceptual scores, spectral distances, pitch, tonal artefacts.

All waveforms are float32 (samples,) in [-1, 1], of one utterance; the synthesised one is aligned with the original.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import librosa
import numpy as np
import soxr
import torch
from jaxtyping import Float, Float32
from torch import Tensor

import arflows.core.runtime.numba_loops  # noqa: F401  puts the cache of what numba compiles for librosa under a lock
from arflows.audio.representation import MelSpec, log_mel
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.machine import double

SAMPLE_BITS = 16
CEPSTRUM = 13
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
"""Transform, hop and window of the multi-resolution STFT distance; Yamamoto et al. 2020 (arXiv:1910.11480)."""
LOWEST_PITCH, HIGHEST_PITCH = 60.0, 500.0

Wave = Float32[np.ndarray, " samples"]


@dataclass(frozen=True)
class Mean:
    """A mean over utterances with its standard error.

    >>> print(Mean.of(np.array([1.0, 2.0, 3.0])))
    2.000 ± 1.132

    Attributes:
        value: The mean.
        standard_error: Standard error of the mean.
        count: Number of utterances.
    """

    value: float
    standard_error: float
    count: int

    @classmethod
    def of(cls, values: Float[np.ndarray, " count"]) -> Mean:
        """Compute the mean over utterances, without NaN values."""
        known = np.asarray(values, np.float64)
        known = known[~np.isnan(known)]
        if not len(known):
            return cls(math.nan, math.nan, 0)
        error = known.std(ddof=1) / math.sqrt(len(known)) if len(known) > 1 else math.nan
        return cls(float(known.mean()), float(error), len(known))

    @classmethod
    def ratio(cls, totals: Float[np.ndarray, " count"], sizes: Float[np.ndarray, " count"]) -> Mean:
        """Compute the mean over all samples of utterances of different lengths, as a ratio of sums.

        The standard error assumes independent utterances.

        >>> Mean.ratio(np.array([10.0, 60.0]), np.array([10.0, 30.0])).value
        1.75

        Args:
            totals: Sum over the samples of each utterance.
            sizes: Number of samples of each utterance.
        """
        totals, sizes = np.asarray(totals, np.float64), np.asarray(sizes, np.float64)
        value, count = totals.sum() / sizes.sum(), len(totals)
        residuals = totals - value * sizes
        error = math.sqrt(count / (count - 1) * (residuals**2).sum()) / sizes.sum() if count > 1 else math.nan
        return cls(float(value), float(error), count)

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval."""
        return self.value - 1.96 * self.standard_error, self.value + 1.96 * self.standard_error

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with null for NaN."""
        known = {"value": self.value, "standard_error": self.standard_error}
        plain: dict[str, Any] = {name: None if math.isnan(value) else value for name, value in known.items()}
        return {**plain, "interval_95": None if math.isnan(self.standard_error) else self.interval, "count": self.count}

    def __str__(self) -> str:
        spread = "" if math.isnan(self.standard_error) else f" ± {1.96 * self.standard_error:.3f}"
        return f"{self.value:.3f}{spread}"


# ------------------------------------------------------------------------------------------------------- likelihood


def dequantize(waveform: Float[Tensor, "*shape"], generator: torch.Generator | None = None) -> Float[Tensor, "*shape"]:
    """Add uniform noise as wide as one 16-bit step, so that a density bounds the probability of 16-bit samples."""
    noise = torch.rand(waveform.shape, generator=generator, dtype=waveform.dtype).to(waveform.device)
    return waveform + (noise - 0.5) / 2 ** (SAMPLE_BITS - 1)


def bits_per_sample(log_prob: float, samples: int) -> float:
    """Convert the log-density of a dequantised waveform in [-1, 1] from nats to bits per 16-bit sample.

    The probability of an integer waveform is E[p] times the volume of its cell, (2 / 2^16)^samples; by Jensen's
    inequality the expected bits are an upper bound.

    >>> bits_per_sample(0.0, samples=100)
    15.0
    """
    return SAMPLE_BITS - 1 - log_prob / (samples * math.log(2))


# ------------------------------------------------------------------------------------------------------- perception


def pesq_wideband(original: Wave, synthesised: Wave, rate: int) -> float:
    """Compute wide-band PESQ (ITU-T P.862.2), from 1 to 4.64, higher is better; NaN if it detects no utterance.

    Args:
        original: Reference waveform.
        synthesised: Waveform to rate.
        rate: Sample rate of both, in Hz.

    Raises:
        UserError: The package pesq is not installed.
    """
    pesq = optional("pesq")
    first, second = (soxr.resample(wave, rate, 16_000) for wave in (original, synthesised))
    try:
        return float(pesq.pesq(16_000, first, second, "wb"))
    except pesq.PesqError:
        return math.nan


def stoi(original: Wave, synthesised: Wave, rate: int) -> float:
    """Compute short-time objective intelligibility (Taal et al. 2011), up to 1, higher is better.

    Args:
        original: Reference waveform.
        synthesised: Waveform to rate.
        rate: Sample rate of both, in Hz.

    Raises:
        UserError: The package pystoi is not installed.
    """
    return float(optional("pystoi").stoi(original, synthesised, rate))


def optional(name: str) -> Any:
    """Import an optional package of the extra ``metrics``.

    Raises:
        UserError: The package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed: `pip install {name}`, or pass --perceptual false.") from error


# ---------------------------------------------------------------------------------------------------------- spectra


def mel_cepstral_distortion(original: Wave, synthesised: Wave, spec: MelSpec) -> float:
    """Compute the mel-cepstral distortion in dB, lower is better.

    Kubichek 1993: the mean over frames of 10 √2 / ln 10 · |c - c'|, with 13 coefficients. The cepstrum is computed
    from the log-mel spectrum (log amplitude = c₀ + Σ c_m cos) without c₀; frames are compared without time warping.

    Args:
        original: Reference waveform.
        synthesised: Waveform to compare.
        spec: Settings of the mel spectrogram.
    """
    natural = MelSpec(**{**spec.as_dict(), "power": 1.0, "log_base": "e", "floor": 1e-5})
    difference = double(_mel(original, natural) - _mel(synthesised, natural))
    band = (torch.arange(spec.bands, dtype=torch.float64) + 0.5) * math.pi / spec.bands
    cosines = torch.cos(torch.arange(1, CEPSTRUM + 1, dtype=torch.float64)[:, None] * band)
    cepstrum = 2 / spec.bands * cosines @ difference
    return float(10 * math.sqrt(2) / math.log(10) * cepstrum.norm(dim=0).mean())


def mel_distance(original: Wave, synthesised: Wave, spec: MelSpec) -> float:
    """Compute the mean absolute difference of log-mel spectrograms, in the unit of ``spec``, lower is better.

    Args:
        original: Reference waveform.
        synthesised: Waveform to compare.
        spec: Settings of the mel spectrogram.
    """
    return float((_mel(original, spec) - _mel(synthesised, spec)).abs().mean())


def multi_resolution_stft(original: Wave, synthesised: Wave) -> float:
    """Compute spectral convergence plus mean difference of log magnitudes over three resolutions, lower is better.

    Yamamoto et al. 2020 (arXiv:1910.11480), equations 4 to 6.

    >>> silence = np.zeros(4096, np.float32)
    >>> noise = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    >>> multi_resolution_stft(noise, noise), multi_resolution_stft(noise, silence) > 1
    (0.0, True)
    """
    distances = []
    for transform, hop, window in RESOLUTIONS:
        first, second = (_magnitudes(wave, transform, hop, window) for wave in (original, synthesised))
        convergence = (first - second).norm() / first.norm()
        distances.append(float(convergence + (first.log() - second.log()).abs().mean()))
    return float(np.mean(distances))


def tones(waveform: Wave, height: int, rate: int) -> Float[np.ndarray, " tones"]:
    """Compute the excess power at multiples of rate/height over neighbouring frequencies, in dB.

    These tones are an artefact of flows that fold a waveform into ``height`` rows, because each row is modelled a
    little differently. The power at each is compared with the median around it; natural speech gives values around 0.

    >>> tones(np.ones(8192, np.float32), 16, 22_050).shape
    (7,)

    Args:
        waveform: Waveform of at least some tenths of a second.
        height: Height of the model.
        rate: Sample rate, in Hz.

    Returns:
        Excess at k · rate / height for 1 ≤ k < height / 2.
    """
    size = 16 * height * max(1, 2048 // (16 * height))  # so that every tone is at the centre of a frequency bin
    size = min(size, len(waveform) // height * height)
    frames = np.lib.stride_tricks.sliding_window_view(waveform, size)[:: max(1, size // 2)]
    power = (np.abs(np.fft.rfft(frames * np.hanning(size), axis=-1)) ** 2).mean(0) + 1e-20
    step = size // height
    excess = []
    for k in range(1, (height + 1) // 2):
        middle, reach = k * step, max(step // 2, 4)
        around = np.r_[middle - reach : middle - 1, middle + 2 : middle + reach + 1]
        around = around[(around > 0) & (around < len(power))]
        excess.append(10 * math.log10(power[middle] / np.median(power[around])))
    return np.array(excess)


def _mel(waveform: Wave, spec: MelSpec) -> Float[Tensor, "bands frames"]:
    return log_mel(torch.from_numpy(waveform)[None], spec)[0]


def _magnitudes(waveform: Wave, transform: int, hop: int, window: int) -> Float[Tensor, "frequencies frames"]:
    wave = torch.from_numpy(waveform)
    spectrum = torch.stft(wave, transform, hop, window, torch.hann_window(window), return_complex=True)
    return spectrum.abs().clamp(min=1e-4)


# ------------------------------------------------------------------------------------------------------------ pitch


@dataclass(frozen=True)
class PitchComparison:
    """Pitch and voicing errors of a synthesised utterance.

    Attributes:
        rmse: Root mean square error in Hz over frames that are voiced in both; NaN if there are none.
        voicing_f1: F1 score of the frames detected as voiced; NaN if neither waveform has any.
    """

    rmse: float
    voicing_f1: float


def compare_pitch(original: Wave, synthesised: Wave, rate: int) -> PitchComparison:
    """Compare pitch and voicing by probabilistic YIN (Mauch & Dixon 2014; librosa's pyin) with a hop of 256 samples.

    Args:
        original: Reference waveform.
        synthesised: Waveform to compare.
        rate: Sample rate of both, in Hz.
    """
    (first, voiced_first), (second, voiced_second) = (_pitch(wave, rate) for wave in (original, synthesised))
    both = voiced_first & voiced_second
    rmse = math.sqrt(float(((first[both] - second[both]) ** 2).mean())) if both.any() else math.nan
    total = voiced_first.sum() + voiced_second.sum()
    return PitchComparison(rmse, float(2 * both.sum() / total) if total else math.nan)


def _pitch(waveform: Wave, rate: int) -> tuple[Float[np.ndarray, " frames"], np.ndarray]:
    pitch, voiced, _ = librosa.pyin(
        waveform, fmin=LOWEST_PITCH, fmax=HIGHEST_PITCH, sr=rate, frame_length=1024, hop_length=256, resolution=0.2
    )
    return pitch, voiced
