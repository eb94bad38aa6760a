"""Pitch lag from a mel spectrogram, by a Viterbi search with bounded look-ahead."""

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
"""Range of the pitch, in Hz."""
HARMONICS = 1800.0
"""Upper end in Hz of the harmonics used; above it, mel bands do not resolve them."""
SMOOTHING = 670.0
"""Width in Hz of the smoothing that gives the spectral envelope below the harmonics."""
JUMP = 25
"""Maximal change of the lag between frames, in samples."""
PENALTY = 1.0
"""Penalty per unit change of the log-lag, in units of the correlation."""
LOOK_AHEAD = 6
"""Frames after a frame that its lag depends on."""


class Pitch(NamedTuple):
    """Pitch of every frame.

    Attributes:
        lag: pitch period in samples.
        periodicity: correlation of the spectrum's harmonics at that lag, up to 1.
    """

    lag: Int[Tensor, "batch frames"]
    periodicity: Float[Tensor, "batch frames"]


def lags(spec: MelSpec) -> tuple[int, int]:
    """Return the shortest and the longest lag, in samples.

    >>> lags(MelSpec())
    (44, 367)
    """
    return int(spec.sample_rate / HIGHEST), int(spec.sample_rate / LOWEST)


def correlations(
    log_amplitude: Float[Tensor, "batch frames frequencies"], spec: MelSpec
) -> Float[Tensor, "batch frames lags"]:
    """Compute the autocorrelation of the spectrum's harmonics above its envelope, at every lag of `lags`; float64."""
    smoothing, weight, cosines = (part.to(log_amplitude.device) for part in _constants(spec))
    count, reach = len(weight), len(smoothing) // 2
    part = log_amplitude[..., : count + reach]
    flat = torch.nn.functional.pad(part.flatten(0, 1)[:, None], (reach, 0), mode="replicate")[:, 0]
    envelope = flat.unfold(1, len(smoothing), 1) @ smoothing
    harmonics = part[..., :count] - envelope.view(*part.shape[:-1], count)
    power = (2 * harmonics.clamp(-3, 2)).exp() * weight
    return (power @ cosines) / power.sum(-1, keepdim=True)


@functools.lru_cache(maxsize=8)
def _constants(spec: MelSpec) -> tuple[Tensor, Tensor, Tensor]:
    width = spec.sample_rate / spec.n_fft
    count = min(round(HARMONICS / width), spec.n_fft // 2 - round(SMOOTHING / width / 2))
    smoothing = np.hanning(2 * round(SMOOTHING / width / 2) + 1)
    weight = np.ones(count)
    weight[: max(1, round(HIGHEST / 8 / width))] = 0.0  # no harmonics here, but low-frequency noise
    falling = count - round(0.6 * count)
    weight[-falling:] = np.linspace(1, 0, falling)
    shortest, longest = lags(spec)
    cosines = np.cos(2 * np.pi * np.outer(np.arange(count), np.arange(shortest, longest + 1)) / spec.n_fft)
    return tuple(torch.from_numpy(part) for part in (smoothing / smoothing.sum(), weight, cosines))  # type: ignore[return-value]


class PitchTracker:
    """Incremental tracker of the lag with the highest correlation along the frames of a batch.

    The lag of a frame is that of the best path up to `LOOK_AHEAD` frames later. A path changes by at most `JUMP`
    samples per frame, at a cost of `PENALTY`. This is a Viterbi search (Forney 1973) with a fixed decision delay.

    Args:
        batch: number of spectrograms.
        spec: settings of the spectrograms.
    """

    def __init__(self, batch: int, spec: MelSpec) -> None:
        self.shortest, longest = lags(spec)
        count = longest + 1 - self.shortest
        self.log_lags = np.log(np.arange(self.shortest, longest + 1, dtype=np.float64))
        self.scores = np.zeros((batch, count))
        self.origins = np.zeros((batch, LOOK_AHEAD + 1, count), np.int32)
        self.seen = 0

    def track(self, correlation: Float[Tensor, "batch frames lags"], ended: bool) -> Int[Tensor, "batch decided"]:
        """Append frames and return the newly decided lags; all remaining ones if ``ended``."""
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
    """Compute lag and periodicity of all frames of whole spectrograms."""
    lag = PitchTracker(len(correlation), spec).track(correlation, ended=True).to(correlation.device)
    return at_lags(correlation, lag, spec)


def at_lags(correlation: Float[Tensor, "batch frames lags"], lag: Int[Tensor, "batch frames"], spec: MelSpec) -> Pitch:
    """Return the pitch at known lags.

    Args:
        correlation: result of `correlations`.
        lag: lag of each frame, in samples.
        spec: settings of the spectrograms.
    """
    return Pitch(lag, correlation.gather(2, (lag - lags(spec)[0])[..., None])[..., 0])


@compiled
def _track(
    correlation: Any, log_lags: Any, penalty: float, jump: int, scores: Any, origins: Any, seen: int, ended: bool,
    decided: Any,
) -> None:  # fmt: skip
    """Continue the search: update path scores (lags,) and back pointers (ring of frames, lags); write decided lags."""
    frames, count = correlation.shape
    ring = len(origins)
    delay = ring - 1
    new = np.empty(count)
    written = 0
    for frame in range(frames):
        at = seen + frame
        origin = origins[at % ring]
        for j in range(count):
            best, previous = scores[j], j
            if at:
                for i in range(max(0, j - jump), min(count, j + jump + 1)):
                    value = scores[i] - penalty * abs(log_lags[i] - log_lags[j])
                    if value > best:
                        best, previous = value, i
            new[j] = best + correlation[frame, j]
            origin[j] = previous
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
        for index in range(len(decided) - 1, written - 1, -1):
            decided[index] = lag
            lag = origins[at % ring, lag]
            at -= 1
