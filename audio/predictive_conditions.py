"""Conditions of a `PredictiveFlow` from a mel spectrogram: filters, pitch and features of every sub-frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arflows.audio.linear_prediction import Envelope, Filters, filters, interpolated, natural
from arflows.audio.pitch import LOOK_AHEAD, Pitch, PitchTracker, at_lags, correlations, track
from arflows.audio.predictive_network import FRAME_REACH, FrameEncoder
from arflows.audio.representation import MelSpec

REACH = FRAME_REACH + 2
"""Frames on either side that all conditions but the pitch depend on: convolutions and two interpolations."""
SURROUNDINGS = 16
"""Frames before and after a segment that its conditions are computed from; pitch tracking starts with them."""

AHEAD = REACH + LOOK_AHEAD
"""Frames after a frame that its conditions depend on."""


class ConditionModel(Protocol):
    """Parts of a `PredictiveFlow` from which conditions are computed; its attributes have the same names."""

    spec: MelSpec
    order: int
    per_frame: int
    envelope: Envelope
    encoder: FrameEncoder
    mean_mel: Tensor

    @property
    def device(self) -> torch.device:
        """Device of the model."""


class Conditions(NamedTuple):
    """Conditions of the sub-frames of a segment of speech.

    Attributes:
        filters: linear prediction.
        lag: pitch lag in samples, from one frame before these sub-frames to one frame after them.
        periodicity: correlation at that lag, up to 1.
        features: inputs of the networks.
    """

    filters: Filters
    lag: Int[Tensor, "batch subframes_and_more"]
    periodicity: Float[Tensor, "batch subframes"]
    features: Float[Tensor, "batch subframes features"]

    def part(self, first: int, last: int, per_frame: int) -> Conditions:
        """Return the conditions of a range of frames.

        Args:
            first: first frame.
            last: frame after the last.
            per_frame: sub-frames per frame.
        """
        inner, wider = slice(first * per_frame, last * per_frame), slice(first * per_frame, (last + 2) * per_frame)
        filters = Filters(*(part[:, inner] for part in self.filters))
        return Conditions(filters, self.lag[:, wider], self.periodicity[:, inner], self.features[:, inner])

    @classmethod
    def joined(cls, parts: Sequence[Conditions], per_frame: int) -> Conditions:
        """Concatenate the conditions of consecutive segments."""
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
    flow: ConditionModel, mel: Float[Tensor, "batch bands surrounded_frames"], speaker: Int[Tensor, " batch"] | None
) -> Conditions:
    """Compute the conditions of all frames but the first and last `SURROUNDINGS`.

    Args:
        flow: the model.
        mel: log-mel spectrograms with their surroundings.
        speaker: index of each speaker, or None.
    """
    log_amplitude = flow.envelope(mel)
    pitch = track(correlations(log_amplitude, flow.spec), flow.spec)
    inner = slice(SURROUNDINGS - REACH, mel.shape[2] - SURROUNDINGS + REACH)
    pitch = Pitch(*(part[:, inner] for part in pitch))
    return _inner_conditions(flow, mel[:, :, inner], log_amplitude[:, inner], pitch, speaker)


def known_of(
    flow: ConditionModel, mel: Tensor, log_amplitude: Tensor, pitch: Pitch
) -> tuple[Float[Tensor, "batch frames inputs"], Filters]:
    """Return the encoder's inputs for all frames but the first and the last, and their filters.

    Args:
        flow: the model.
        mel: log-mel spectrograms.
        log_amplitude: spectra by `Envelope`, (batch, frames, frequencies).
        pitch: pitch of every frame.
    """
    all_filters = filters(log_amplitude, flow.spec, flow.order, flow.per_frame)
    levels = [part.log().unflatten(1, (-1, flow.per_frame)).mean(2) for part in all_filters[1:]]
    known = [natural(mel, flow.spec).mT[:, 1:-1]]
    known += [part[..., None] for part in (*levels, pitch.lag.double().log()[:, 1:-1], pitch.periodicity[:, 1:-1])]
    return torch.cat(known, 2), all_filters


def _inner_conditions(
    flow: ConditionModel,
    mel: Float[Tensor, "batch bands frames"],
    log_amplitude: Float[Tensor, "batch frames frequencies"],
    pitch: Pitch,
    speaker: Int[Tensor, " batch"] | None,
) -> Conditions:
    """Compute the conditions of all frames but the first and last `REACH` from spectra and pitch."""
    known, all_filters = known_of(flow, mel, log_amplitude, pitch)
    features = flow.encoder(known.to(flow.mean_mel.dtype), speaker)
    inner = slice((REACH - 1) * flow.per_frame, -(REACH - 1) * flow.per_frame)
    around = slice(REACH - 2, -(REACH - 2))
    lag = interpolated(pitch.lag[:, around, None].double().log(), flow.spec, flow.per_frame)
    periodicity = pitch.periodicity[:, REACH - 1 : -(REACH - 1), None]
    return Conditions(
        Filters(*(part[:, inner] for part in all_filters)),
        lag[..., 0].exp().round().long(),
        interpolated(periodicity, flow.spec, flow.per_frame)[..., 0],
        interpolated(features, flow.spec, flow.per_frame),
    )


class ConditionStream:
    """Incremental conditions of a mel spectrogram that arrives in pieces.

    Conditions are computed for fixed blocks of frames by operations on arrays of fixed size, so they are bitwise
    independent of how the spectrogram is cut into pieces. A block is complete when `AHEAD` more frames are known.

    Args:
        flow: the model.
        batch: number of spectrograms.
        speaker: index of the speaker of each spectrogram, or of all.
        block: frames per block.
    """

    def __init__(self, flow: ConditionModel, batch: int, speaker: Tensor | None, block: int) -> None:
        self.flow, self.batch, self.block = flow, batch, block
        self.speaker = None if speaker is None else speaker.expand(batch).to(flow.device)
        self.tracker = PitchTracker(batch, flow.spec)
        self.taken = self.done = 0
        before = -(-SURROUNDINGS // block) * block
        # `waiting` holds frames of an incomplete block; the lists hold framewise results from frame `first` on.
        self.waiting, self.first = self._silence(before), -before
        self.mel, self.log_amplitude, self.correlation, self.lag = (list[Tensor]() for _ in range(4))

    def take(self, mel: Float[Tensor, "batch bands frames"]) -> None:
        """Append frames."""
        self.taken += mel.shape[2]
        self.waiting = torch.cat([self.waiting, mel.to(self.waiting)], 2)

    @torch.no_grad()
    def ready(self, ended: bool) -> Iterator[tuple[int, Conditions]]:
        """Iterate over the newly completed blocks; all remaining ones if ``ended``, the last one padded.

        Yields:
            Number of frames in the block without padding, and the conditions of the padded block.
        """
        if ended:
            self.waiting = torch.cat([self.waiting, self._silence(AHEAD + 2 * self.block)], 2)
        while True:
            known = self.first + sum(part.shape[1] for part in self.lag)
            if self.done < self.taken and self.done + self.block + REACH <= known:
                yield self._block()
            elif self.waiting.shape[2] >= self.block:
                self._analyse(self.waiting[:, :, : self.block].contiguous())
                self.waiting = self.waiting[:, :, self.block :]
            else:
                return

    def _analyse(self, mel: Tensor) -> None:
        """Append spectra and correlations of a block of frames, and the lags decided by it."""
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
        pitch = at_lags(correlation, lag, self.flow.spec)
        conditions = _inner_conditions(self.flow, mel[:, :, window], log_amplitude, pitch, self.speaker)
        keep = max(start, 0)
        self.mel = [mel[:, :, keep:]]
        self.log_amplitude, self.correlation, self.lag = ([part[:, keep:]] for part in others)
        self.first += keep
        self.done += frames
        return frames, conditions

    def _silence(self, frames: int) -> Float[Tensor, "batch bands frames"]:
        spec, like = self.flow.spec, self.flow.mean_mel
        return torch.full((self.batch, spec.bands, frames), spec.silence, dtype=like.dtype, device=like.device)
