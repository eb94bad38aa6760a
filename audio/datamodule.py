"""From a prepared store of speech to batches."""

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
"""Segments that a model is initialised from, if there are so many."""


class SpeechDataset(StoreDataset):
    """The utterances of one split, whole or a random segment of each; see `StoreDataset`.

    A batch is ``{"x": float32 (batch, samples) in [-1, 1], "mel": log-mel spectrograms, "speaker": numbers}``, the last
    two where they are wanted. A segment begins at a frame, and its mel frames are those of the whole utterance. Whole
    utterances differ in length, so a batch of them holds one. A segment may come with what is around it: the samples of
    ``lead`` frames before it, and the mel spectrogram of ``surroundings`` frames more before and after all that. Beyond
    the utterance there is silence.
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
        """Choose the utterances.

        Args:
            store: A store of speech.
            split: Which of its splits.
            segment: Samples of a segment, a multiple of the hop; utterances that are shorter are left out. None for
                whole utterances.
            mels: Give the mel spectrograms.
            speakers: Give the speakers.
            limit: Keep at most so many utterances, chosen at random.
            seed: Decides which, and where segments begin.
            lead: Frames before a segment whose samples come with it.
            surroundings: Frames of the mel spectrogram that come with it, before its lead and after its end.
            numbers: Number of each of the store's speakers in a model; None for the store's own.

        Raises:
            UserError: The store has no such split, or knows no speakers.
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
            raise UserError(f"{store.path} does not know who speaks: use a model without speakers, or another store.")
        lengths = store.ragged(split, "mels").lengths
        kept: Int64[np.ndarray, " examples"] = np.arange(len(lengths)) if self.kept is None else self.kept
        if self.frames is not None:
            kept = kept[lengths[kept] >= self.frames]
        self.left_out = self.count - len(kept)
        self.kept, self.count = kept, len(kept)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Fetch a batch of segments, or one whole utterance."""
        assert self.kept is not None
        epochs, places = self.places(indices)
        rows = self.kept[places]
        waveforms, mels = self.store.ragged(self.split, "waveforms"), self.store.ragged(self.split, "mels")
        lengths = mels.offsets[rows + 1] - mels.offsets[rows]
        if not len(rows):
            return {"x": torch.zeros(0, 0)}
        if self.frames is None:
            frames, firsts = int(lengths[0]), np.zeros(len(rows), np.int64)
            if (lengths != frames).any():
                raise ValueError("whole utterances of different lengths do not fit into one batch")
        else:
            frames, firsts = self.frames, (self._chances(epochs, places) * (lengths - self.frames + 1)).astype(np.int64)
        segments = [(row, int(first) - self.lead, int(first) + frames) for row, first in zip(rows, firsts, strict=True)]
        x = np.stack([_part(waveforms[row], first * self.hop, last * self.hop, 0) for row, first, last in segments])
        batch: Batch = {"x": torch.from_numpy(from_int16(x))}
        if self.mels:
            more, silence = self.surroundings, self.spec.silence
            parts = [_part(mels[row], first - more, last + more, silence) for row, first, last in segments]
            batch["mel"] = torch.from_numpy(np.ascontiguousarray(np.stack(parts).transpose(0, 2, 1), np.float32))
        if self.speakers:
            speakers = self.store.array(self.split, "speakers")[rows]
            batch["speaker"] = torch.from_numpy(speakers if self.numbers is None else self.numbers[speakers])
        return batch

    def _chances(
        self, epochs: Int64[np.ndarray, " batch"], places: Int64[np.ndarray, " batch"]
    ) -> Float64[np.ndarray, " batch"]:
        """Where in its utterance each segment begins, from 0 to 1: a function of seed, epoch and place."""
        return np.array(
            [np.random.default_rng([self.seed, *pair]).random() for pair in zip(epochs, places, strict=True)]
        )


def _part(values: np.ndarray, first: int, last: int, silence: float) -> np.ndarray:
    """The values from ``first`` to before ``last``, with silence where these lie beyond the ends."""
    inside = np.asarray(values[max(first, 0) : last])
    inside = inside.astype(np.float32) if inside.dtype == np.float16 else inside  # before silence is rounded
    if first >= 0 and last <= len(values):
        return inside
    around = [(max(-first, 0), max(last - len(values), 0)), *[(0, 0)] * (inside.ndim - 1)]
    return np.pad(inside, around, constant_values=silence)


class SpeechDataModule(StoreDataModule):
    """Batches of speech for training, validation and testing; see `StoreDataModule`.

    Training batches hold a random segment of each of ``batch_size`` utterances, so that an epoch hears every utterance
    once, in part; validation and test batches hold one whole utterance.

    Attributes:
        spec: The settings of its waveforms and mel spectrograms.
        speaker_names: Who speaks; empty if that is not known.
        mels: Whether batches bring mel spectrograms; an unconditional model wants none.
        speakers: Whether they bring speakers; a model that knows none wants none.
        lead: Frames before a training segment whose samples come with it, as a model wants them.
        surroundings: Frames of the mel spectrogram that come with it on both sides.
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
            store: The file that `arflows audio prepare` wrote.
            batch_size: Segments in a training batch, on each device.
            segment: Samples of a training segment, a multiple of the hop; utterances that are shorter are not used.
            **options: Those of `StoreDataModule`: workers, limit and seed.

        Raises:
            UserError: The file is no store of speech or of another version, or a setting is out of range.
        """
        super().__init__(store, "audio", batch_size, 1, **options)
        self.spec = MelSpec.from_dict(self.store.spec)
        if segment < 1 or segment % self.spec.hop:
            fitting = max(1, round(segment / self.spec.hop)) * self.spec.hop
            raise UserError(f"segment is {segment}: give a multiple of the hop {self.spec.hop}, such as {fitting}.")
        self.segment = segment
        self.speaker_names: list[str] = self.store.categories.get("speakers", [])
        self.mels = True
        self.speakers = bool(self.speaker_names)
        self.lead = self.surroundings = 0
        self._numbers: Int64[np.ndarray, " speakers"] | None = None

    def number_speakers(self, names: list[str]) -> None:
        """Give speakers the numbers by which a model knows them.

        Args:
            names: Names of the model's speakers.

        Raises:
            UserError: The store has a speaker whom the model does not know.
        """
        self._numbers = np.array(match_names("speaker", self.speaker_names, names, self.store.path), np.int64)
        self.speaker_names = names

    def dataset(self, split: str, training: bool = False) -> SpeechDataset:
        """Return the utterances of a split in order, whole, or in training a segment of each."""
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
