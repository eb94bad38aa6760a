"""Dataset and data module of a prepared store of speech."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from arflows.audio.representation import MelSpec
from arflows.core.runtime.errors import UserError, match_names
from arflows.data.audio_files import from_int16
from arflows.data.batches import Batch, StoreDataModule, StoreDataset
from arflows.data.store import Store

INITIALIZATION = 256
"""Maximal number of segments in the batch that initialises a model."""


class SpeechDataset(StoreDataset):
    """Utterances of one split, whole or a random segment of each; see `StoreDataset`.

    A batch is ``{"x": float32 (batch, samples) in [-1, 1], "mel": float32 (batch, bands, frames), "speaker": int64
    (batch,)}``; the last two are optional. A segment begins at a frame boundary, and its mel frames are cut from the
    spectrogram of the whole utterance. Whole utterances differ in length, so a batch holds one of them. A segment can
    include context: the samples of ``lead`` frames before it, and ``surroundings`` more mel frames on both sides of
    lead and segment. Context beyond the utterance is silence.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        segment: int | None = None,
        mels: bool = True,
        speakers: bool = False,
        limit: int | None = None,
        seed: int = 0,
        lead: int = 0,
        surroundings: int = 0,
        numbers: Int64[np.ndarray, " speakers"] | None = None,
    ) -> None:
        """Select the utterances.

        Args:
            store: A store of speech.
            split: Name of the split.
            segment: Samples of a segment, a multiple of the hop; shorter utterances are left out. None for whole
                utterances.
            mels: Include the mel spectrograms.
            speakers: Include the speakers.
            limit: Maximal number of utterances, chosen at random.
            seed: Seed of the choice of utterances and of segment positions.
            lead: Frames before a segment whose samples are included.
            surroundings: Mel frames included before the lead and after the segment.
            numbers: The model's index of each of the store's speakers; None for the store's own.

        Raises:
            UserError: The store has no such split, or speakers are requested and it has none.
        """
        super().__init__(store, split, {}, limit, seed)
        self.seed = seed
        self.numbers = numbers
        self.spec = MelSpec.from_dict(store.spec)
        self.hop = self.spec.hop
        self.frames = None if segment is None else segment // self.hop
        self.lead, self.surroundings = (0, 0) if segment is None else (lead, surroundings)
        self.mels = mels
        self.speakers = speakers
        if speakers and "speakers" not in store.fields(split):
            raise UserError(f"{store.path} has no speaker labels: use a model without speakers.")
        lengths = store.ragged(split, "mels").lengths
        kept: Int64[np.ndarray, " examples"] = np.arange(len(lengths)) if self.kept is None else self.kept
        if self.frames is not None:
            kept = kept[lengths[kept] >= self.frames]
        self.left_out = self.count - len(kept)
        self.kept, self.count = kept, len(kept)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return a batch of segments, or one whole utterance."""
        assert self.kept is not None
        epochs, positions = self.places(indices)
        rows = self.kept[positions]
        waveforms, mels = self.store.ragged(self.split, "waveforms"), self.store.ragged(self.split, "mels")
        lengths = mels.offsets[rows + 1] - mels.offsets[rows]
        if not len(rows):
            return {"x": torch.zeros(0, 0)}
        if self.frames is None:
            frames, firsts = int(lengths[0]), np.zeros(len(rows), np.int64)
            if (lengths != frames).any():
                raise ValueError("whole utterances of different lengths do not fit into one batch")
        else:
            frames = self.frames
            firsts = (self._starts(epochs, positions) * (lengths - frames + 1)).astype(np.int64)
        segments = [(row, int(first) - self.lead, int(first) + frames) for row, first in zip(rows, firsts, strict=True)]
        x = np.stack([_part(waveforms[row], first * self.hop, last * self.hop, 0) for row, first, last in segments])
        batch: Batch = {"x": torch.from_numpy(from_int16(x))}
        if self.mels:
            margin, silence = self.surroundings, self.spec.silence
            parts = [_part(mels[row], first - margin, last + margin, silence) for row, first, last in segments]
            batch["mel"] = torch.from_numpy(np.ascontiguousarray(np.stack(parts).transpose(0, 2, 1), np.float32))
        if self.speakers:
            speakers = self.store.array(self.split, "speakers")[rows]
            batch["speaker"] = torch.from_numpy(speakers if self.numbers is None else self.numbers[speakers])
        return batch

    def _starts(
        self, epochs: Int64[np.ndarray, " batch"], positions: Int64[np.ndarray, " batch"]
    ) -> Float64[np.ndarray, " batch"]:
        """Relative start of each segment in [0, 1), a function of seed, epoch and position."""
        return np.array(
            [np.random.default_rng([self.seed, *pair]).random() for pair in zip(epochs, positions, strict=True)]
        )


def _part(values: np.ndarray, first: int, last: int, silence: float) -> np.ndarray:
    """Return ``values[first:last]``, with silence where the range exceeds the ends."""
    inside = np.asarray(values[max(first, 0) : last])
    inside = inside.astype(np.float32) if inside.dtype == np.float16 else inside  # else float16 would round the silence
    if first >= 0 and last <= len(values):
        return inside
    around = [(max(-first, 0), max(last - len(values), 0)), *[(0, 0)] * (inside.ndim - 1)]
    return np.pad(inside, around, constant_values=silence)


class SpeechDataModule(StoreDataModule):
    """Batches of speech for training, validation and testing; see `StoreDataModule`.

    Training batches hold a random segment of each of ``batch_size`` utterances; an epoch uses every utterance once.
    Validation and test batches hold one whole utterance.

    Attributes:
        spec: Settings of the waveforms and mel spectrograms.
        speaker_names: Names of the speakers; empty if the store has none.
        mels: True if batches contain mel spectrograms; set to False for unconditional models.
        speakers: True if batches contain speakers; set to False for models without speakers.
        lead: Frames before a training segment whose samples are included; set by the model.
        surroundings: Mel frames included on both sides; set by the model.
    """

    def __init__(
        self,
        store: Path,
        batch_size: int = 8,
        segment: int = 16_128,
        **options: Any,
    ) -> None:
        """Open the store.

        Args:
            store: File written by `arflows audio prepare`.
            batch_size: Segments in a training batch, on each device.
            segment: Samples of a training segment, a multiple of the hop; shorter utterances are not used.
            **options: Options of `StoreDataModule`: workers, limit and seed.

        Raises:
            UserError: The file is not a speech store of this version, or a setting is out of range.
        """
        super().__init__(store, "audio", batch_size, 1, **options)
        self.spec = MelSpec.from_dict(self.store.spec)
        if segment < 1 or segment % self.spec.hop:
            nearest = max(1, round(segment / self.spec.hop)) * self.spec.hop
            raise UserError(f"segment is {segment}: give a multiple of the hop {self.spec.hop}, such as {nearest}.")
        self.segment = segment
        self.speaker_names: list[str] = self.store.categories.get("speakers", [])
        self.mels = True
        self.speakers = bool(self.speaker_names)
        self.lead = self.surroundings = 0
        self._numbers: Int64[np.ndarray, " speakers"] | None = None

    def number_speakers(self, names: list[str]) -> None:
        """Map the store's speakers to a model's speaker indices.

        Args:
            names: Names of the model's speakers, in the order of its indices.

        Raises:
            UserError: The store has a speaker that the model lacks.
        """
        self._numbers = np.array(match_names("speaker", self.speaker_names, names, self.store.path), np.int64)
        self.speaker_names = names

    def dataset(self, split: str, training: bool = False) -> SpeechDataset:
        """Return the dataset of a split: whole utterances, or random segments for training."""
        segment = self.segment if training else None
        return SpeechDataset(
            self.store,
            split,
            segment,
            self.mels,
            self.speakers,
            self.limit,
            self.seed,
            self.lead,
            self.surroundings,
            self._numbers,
        )

    def initialization_batch(self) -> Batch:
        """Return one large training batch of segments, the same in every process and run."""
        dataset = self.dataset("train", training=True)
        order = np.random.default_rng(self.seed).permutation(len(dataset))
        return dataset.__getitems__(order[:INITIALIZATION].tolist())
