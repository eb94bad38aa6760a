"""The lag of the pitch from a mel spectrogram alone, by a Viterbi search with bounded look-ahead."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from arflows.audio.representation import MelSpec
from arflows.core.runtime.numba_loops import compiled

HIGHEST, LOWEST = 500.0, 60.0
"""Hz, of the pitch that is looked for."""
HARMONICS = 1800.0
"""Hz up to which harmonics are looked at; above, the bands of a mel spectrogram do not tell them apart."""
SMOOTHING = 670.0
"""Hz over which the spectrum is smoothed to get the envelope that harmonics stand out of."""
JUMP = 25
"""Most samples by which the lag may change from one frame to the next."""
PENALTY = 1.0
"""Of a change of the logarithm of the lag by one, in units of the correlation."""
LOOK_AHEAD = 6
"""Frames after its own that decide on a frame's lag."""


class Pitch(NamedTuple):
    """Of every frame.

    Attributes:
        lag: in samples.
        periodicity: correlation of the spectrum's harmonics at that lag, up to 1.
    """

    lag: Int[Tensor, "batch frames"]
    periodicity: Float[Tensor, "batch frames"]


def lags(spec: MelSpec) -> tuple[int, int]:
    """The shortest and the longest lag, in samples."""
    return int(spec.sample_rate / HIGHEST), int(spec.sample_rate / LOWEST)


def correlations(
    log_amplitude: Float[Tensor, "batch frames frequencies"], spec: MelSpec
) -> Float[Tensor, "batch frames lags"]:
    """Autocorrelation, at every lag of `lags`, of what stands out of the spectrum's envelope; float64."""
    smoothing, weight, cosines = (part.to(log_amplitude.device) for part in _constants(spec))
    count, reach = len(weight), len(smoothing) // 2
    part = log_amplitude[..., : count + reach]
    flat = torch.nn.functional.pad(part.flatten(0, 1)[:, None], (reach, 0), mode="replicate")[:, 0]
    envelope = flat.unfold(1, len(smoothing), 1) @ smoothing
    stands_out = part[..., :count] - envelope.view(*part.shape[:-1], count)
    power = (2 * stands_out.clamp(-3, 2)).exp() * weight
    return (power @ cosines) / power.sum(-1, keepdim=True)


@functools.lru_cache(maxsize=8)
def _constants(spec: MelSpec) -> tuple[Tensor, Tensor, Tensor]:
    width = spec.sample_rate / spec.n_fft
    count = min(round(HARMONICS / width), spec.n_fft // 2 - round(SMOOTHING / width / 2))
    smoothing = np.hanning(2 * round(SMOOTHING / width / 2) + 1)
    weight = np.ones(count)
    weight[: max(1, round(HIGHEST / 8 / width))] = 0.0  # no harmonics, and rumble
    falling = count - round(0.6 * count)
    weight[-falling:] = np.linspace(1, 0, falling)
    shortest, longest = lags(spec)
    cosines = np.cos(2 * np.pi * np.outer(np.arange(count), np.arange(shortest, longest + 1)) / spec.n_fft)
    return tuple(torch.from_numpy(part) for part in (smoothing / smoothing.sum(), weight, cosines))  # type: ignore[return-value]


class PitchTracker:
    """Follows the lag with the highest correlation along the frames of a batch, as they come.

    The lag of a frame is that of the best path through the frames up to `LOOK_AHEAD` after it, which changes by at
    most `JUMP` samples a frame and pays `PENALTY` for it: a Viterbi search (Forney 1973) with decisions of fixed delay.

    Args:
        batch: how many spectrograms.
        spec: their settings.
    """

    def __init__(self, batch: int, spec: MelSpec) -> None:
        self.shortest, longest = lags(spec)
        count = longest + 1 - self.shortest
        self.log_lags = np.log(np.arange(self.shortest, longest + 1, dtype=np.float64))
        self.scores = np.zeros((batch, count))
        self.origins = np.zeros((batch, LOOK_AHEAD + 1, count), np.int32)
        self.seen = 0

    def track(self, correlation: Float[Tensor, "batch frames lags"], ended: bool) -> Int[Tensor, "batch decided"]:
        """Takes frames and returns the lags decided by now: all that are left where frames have ended."""
        values = correlation.detach().double().cpu().numpy()
        frames = values.shape[1]
        first = max(self.seen - LOOK_AHEAD, 0)
        last = self.seen + frames if ended else max(self.seen + frames - LOOK_AHEAD, 0)
        decided = np.zeros((len(values), last - first), np.int64)
        for example in range(len(values)):
            _track(
                values[example], self.log_lags, PENALTY, JUMP, self.scores[example], self.origins[example],
                self.seen, ended, decided[example],
            )  # fmt: skip
        self.seen += frames
        return torch.from_numpy(decided + self.shortest)


def track(correlation: Float[Tensor, "batch frames lags"], spec: MelSpec) -> Pitch:
    """Lag and periodicity of all frames of whole spectrograms."""
    lag = PitchTracker(len(correlation), spec).track(correlation, ended=True).to(correlation.device)
    return at_lags(correlation, lag, spec)


def at_lags(correlation: Float[Tensor, "batch frames lags"], lag: Int[Tensor, "batch frames"], spec: MelSpec) -> Pitch:
    """The lags with the correlations at them."""
    return Pitch(lag, correlation.gather(2, (lag - lags(spec)[0])[..., None])[..., 0])


@compiled
def _track(
    correlation: Any, log_lags: Any, penalty: float, jump: int, scores: Any, origins: Any, seen: int, ended: bool,
    decided: Any,
) -> None:  # fmt: skip
    """Goes on with ``scores`` of the paths to every lag and the origins of the last frames, a ring; writes lags."""
    frames, count = correlation.shape
    ring = len(origins)
    delay = ring - 1
    new = np.empty(count)
    written = 0
    for frame in range(frames):
        at = seen + frame
        origin = origins[at % ring]
        for j in range(count):
            best, place = scores[j], j
            if at:
                for i in range(max(0, j - jump), min(count, j + jump + 1)):
                    value = scores[i] - penalty * abs(log_lags[i] - log_lags[j])
                    if value > best:
                        best, place = value, i
            new[j] = best + correlation[frame, j]
            origin[j] = place
        highest = np.max(new)
        for j in range(count):
            scores[j] = new[j] - highest
        if at >= delay:
            lag = np.argmax(scores)
            for back in range(delay):
                lag = origins[(at - back) % ring, lag]
            decided[written] = lag
            written += 1
    if ended:
        lag = np.argmax(scores)
        at = seen + frames - 1
        for place in range(len(decided) - 1, written - 1, -1):
            decided[place] = lag
            lag = origins[at % ring, lag]
            at -= 1
