"""What a `PredictiveFlow` makes of a mel spectrogram: filters, pitch and features of every sub-frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arflows.audio.linear_prediction import Filters, filters, interpolated, natural
from arflows.audio.pitch import LOOK_AHEAD, Pitch, PitchTracker, at_lags, correlations, track
from arflows.audio.predictive_network import FRAME_REACH

if TYPE_CHECKING:
    from arflows.audio.predictive import PredictiveFlow

REACH = FRAME_REACH + 2
"""So many frames next to a frame decide on all but its pitch: convolutions, interpolation, interpolation of filters."""
SURROUNDINGS = 16
"""Frames before and after a stretch of speech that its conditions are computed from; before these the pitch is free."""

AHEAD = REACH + LOOK_AHEAD
"""Frames after a frame that decide on its conditions."""


class Conditions(NamedTuple):
    """What is known of the sub-frames of a stretch of speech, apart from its samples.

    Attributes:
        filters: linear prediction.
        lag: of the pitch, in samples; of one frame before these sub-frames, of these, and of one frame after them.
        periodicity: at that lag, up to 1.
        features: given to the networks.
    """

    filters: Filters
    lag: Int[Tensor, "batch subframes_and_more"]
    periodicity: Float[Tensor, "batch subframes"]
    features: Float[Tensor, "batch subframes features"]

    def part(self, first: int, last: int, per_frame: int) -> Conditions:
        """Those of the frames from ``first`` to before ``last``."""
        inner, wider = slice(first * per_frame, last * per_frame), slice(first * per_frame, (last + 2) * per_frame)
        filters = Filters(*(part[:, inner] for part in self.filters))
        return Conditions(filters, self.lag[:, wider], self.periodicity[:, inner], self.features[:, inner])

    @classmethod
    def joined(cls, parts: Sequence[Conditions], per_frame: int) -> Conditions:
        """Those of several stretches of speech, one after the other."""
        first, *_, last = parts if len(parts) > 1 else (parts[0], parts[0])
        lag = [
            first.lag[:, :per_frame],
            *(part.lag[:, per_frame:-per_frame] for part in parts),
            last.lag[:, -per_frame:],
        ]
        return cls(
            Filters(*(torch.cat(pieces, 1) for pieces in zip(*(part.filters for part in parts), strict=True))),
            torch.cat(lag, 1),
            torch.cat([part.periodicity for part in parts], 1),
            torch.cat([part.features for part in parts], 1),
        )


def conditions_of(
    flow: PredictiveFlow, mel: Float[Tensor, "batch bands surrounded_frames"], speaker: Int[Tensor, " batch"] | None
) -> Conditions:
    """What is known of the sub-frames of all frames but the first and last `SURROUNDINGS`."""
    log_amplitude = flow.envelope(mel)
    found = track(correlations(log_amplitude, flow.spec), flow.spec)
    inner = slice(SURROUNDINGS - REACH, mel.shape[2] - SURROUNDINGS + REACH)
    found = Pitch(*(part[:, inner] for part in found))
    return _inner_conditions(flow, mel[:, :, inner], log_amplitude[:, inner], found, speaker)


def known_of(
    flow: PredictiveFlow, mel: Tensor, log_amplitude: Tensor, found: Pitch
) -> tuple[Float[Tensor, "batch frames inputs"], Filters]:
    """What the encoder is given of all frames but the first and the last, and their filters."""
    all_filters = filters(log_amplitude, flow.spec, flow.order, flow.per_frame)
    levels = [part.log().unflatten(1, (-1, flow.per_frame)).mean(2) for part in all_filters[1:]]
    known = [natural(mel, flow.spec).mT[:, 1:-1]]
    known += [part[..., None] for part in (*levels, found.lag.double().log()[:, 1:-1], found.periodicity[:, 1:-1])]
    return torch.cat(known, 2), all_filters


def _inner_conditions(
    flow: PredictiveFlow,
    mel: Float[Tensor, "batch bands frames"],
    log_amplitude: Float[Tensor, "batch frames frequencies"],
    found: Pitch,
    speaker: Int[Tensor, " batch"] | None,
) -> Conditions:
    """What is known of all frames but the first and last `REACH`, whose spectra and pitch are given."""
    known, all_filters = known_of(flow, mel, log_amplitude, found)
    features = flow.encoder(known.to(flow.mean_mel.dtype), speaker)
    inner = slice((REACH - 1) * flow.per_frame, -(REACH - 1) * flow.per_frame)
    around = slice(REACH - 2, -(REACH - 2))
    lag = interpolated(found.lag[:, around, None].double().log(), flow.spec, flow.per_frame)
    periodicity = found.periodicity[:, REACH - 1 : -(REACH - 1), None]
    return Conditions(
        Filters(*(part[:, inner] for part in all_filters)),
        lag[..., 0].exp().round().long(),
        interpolated(periodicity, flow.spec, flow.per_frame)[..., 0],
        interpolated(features, flow.spec, flow.per_frame),
    )


class ConditionStream:
    """The conditions of a mel spectrogram that arrives piece by piece.

    They are computed for blocks of frames counted from the first, always by the same operations on arrays of the same
    sizes, so that they are the same, bit by bit, however the spectrogram is cut into pieces. A block is complete when
    `AHEAD` more frames are known.

    Args:
        flow: the model.
        batch: how many spectrograms.
        speaker: number of the speaker of each, or of all.
        block: frames of a block.
    """

    def __init__(self, flow: PredictiveFlow, batch: int, speaker: Tensor | None, block: int) -> None:
        self.flow, self.batch, self.block = flow, batch, block
        self.speaker = None if speaker is None else speaker.expand(batch).to(flow.device)
        self.tracker = PitchTracker(batch, flow.spec)
        self.taken = self.done = 0
        before = -(-SURROUNDINGS // block) * block
        # Frames that wait for a block to be full; of all frames from `first` on what is known of each by itself.
        self.waiting, self.first = self._silence(before), -before
        self.mel, self.log_amplitude, self.correlation, self.lag = (list[Tensor]() for _ in range(4))

    def take(self, mel: Float[Tensor, "batch bands frames"]) -> None:
        """Adds frames."""
        self.taken += mel.shape[2]
        self.waiting = torch.cat([self.waiting, mel.to(self.waiting)], 2)

    @torch.no_grad()
    def ready(self, ended: bool) -> Iterator[tuple[int, Conditions]]:
        """The blocks that the frames so far complete; all that are left when they have ended, the last one filled up.

        Yields:
            How many frames of the block there are, and the conditions of the whole block.
        """
        if ended:
            self.waiting = torch.cat([self.waiting, self._silence(AHEAD + 2 * self.block)], 2)
        while True:
            known = self.first + sum(part.shape[1] for part in self.lag)
            if self.done < self.taken and self.done + self.block + REACH <= known:
                yield self._block()
            elif self.waiting.shape[2] >= self.block:
                self._look_at(self.waiting[:, :, : self.block].contiguous())
                self.waiting = self.waiting[:, :, self.block :]
            else:
                return

    def _look_at(self, mel: Tensor) -> None:
        """What is known of a block of frames by itself, and the lags that it decides."""
        log_amplitude = self.flow.envelope(mel)
        correlation = correlations(log_amplitude, self.flow.spec)
        self.mel.append(mel)
        self.log_amplitude.append(log_amplitude)
        self.correlation.append(correlation)
        self.lag.append(self.tracker.track(correlation, ended=False).to(mel.device))

    def _block(self) -> tuple[int, Conditions]:
        frames = min(self.block, self.taken - self.done)
        start = self.done - REACH - self.first
        window = slice(start, start + self.block + 2 * REACH)
        mel = torch.cat(self.mel, 2)
        others = [torch.cat(parts, 1) for parts in (self.log_amplitude, self.correlation, self.lag)]
        log_amplitude, correlation, lag = (part[:, window] for part in others)
        found = at_lags(correlation, lag, self.flow.spec)
        conditions = _inner_conditions(self.flow, mel[:, :, window], log_amplitude, found, self.speaker)
        keep = max(start, 0)
        self.mel = [mel[:, :, keep:]]
        self.log_amplitude, self.correlation, self.lag = ([part[:, keep:]] for part in others)
        self.first += keep
        self.done += frames
        return frames, conditions

    def _silence(self, frames: int) -> Float[Tensor, "batch bands frames"]:
        spec, like = self.flow.spec, self.flow.mean_mel
        return torch.full((self.batch, spec.bands, frames), spec.silence, dtype=like.dtype, device=like.device)
