"""Conversion of a speech source to a store: ``arflows audio prepare --source espeak --out espeak.h5``."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from arflows.audio.representation import MelSpec, log_mel
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import refuse_existing
from arflows.core.runtime.option_types import Fraction, PositiveInt
from arflows.data.audio_files import SkippedAudio, from_int16, to_int16
from arflows.data.read_stats import ReadStats
from arflows.data.speech_sources import SpeechSource, Utterance, assign_splits, read_speech, shared
from arflows.data.store_writer import StoreWriter

BATCH = 64
"""Utterances per write."""


def prepare(
    source: str,
    out: Path,
    mel: MelSpec = MelSpec(),  # noqa: B008
    split_by: Literal["sentence", "speaker"] = "sentence",
    val_fraction: Fraction = 0.05,
    test_fraction: Fraction = 0.05,
    limit: PositiveInt | None = None,
    mels: Literal["float16", "float32"] = "float16",
    workers: PositiveInt = 1,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write a store of speech for `train`, `score` and `evaluate`: 16-bit waveforms and their mel spectrograms.

    A folder may contain WAV, FLAC, Ogg, MP3 and other files of any sample rate, bit depth and number of channels. They
    are resampled and mixed down, and the command reports how many. The layouts of LJSpeech, VCTK and LibriTTS are
    supported, and a metadata.csv with lines id|text|split. Files that are damaged, silent, too short or not audio are
    left out and listed in the store.

    Args:
        source: espeak (built in: eSpeak NG reads sentences of this project), or the path of a folder or file.
        out: Store to write, such as ljspeech.h5.
        mel: Settings of waveforms and mel spectrograms, which are saved with a model.
        split_by: Unit that train, val and test must not share; a model only supports speakers it was trained on.
        val_fraction: Fraction of the training utterances used for validation, if the source has no such split.
        test_fraction: Fraction of the training utterances used for testing, if the source has no such split.
        limit: Maximal number of utterances of each split, chosen at random.
        mels: Type of the stored mel spectrograms; float16 has an error of at most 0.004.
        workers: Number of conversion processes; more than one pay off from some hours of speech on.
        seed: Seed of the splits, of the choice of utterances, and of the built-in voices.
        overwrite: Replace an existing store.
    """
    refuse_existing(out, overwrite)
    speech = _open(source, seed)
    generator = np.random.default_rng(seed)
    fractions = {"val": val_fraction, "test": test_fraction}
    splits = assign_splits(speech.utterances, split_by, fractions, generator)
    available = {split: len(utterances) for split, utterances in splits.items()}
    if limit is not None:
        splits = {
            split: [utterances[i] for i in np.sort(generator.permutation(len(utterances))[:limit])]
            for split, utterances in splits.items()
        }
    speakers = _speakers(splits)
    stats = {split: ReadStats() for split in splits}
    seconds = dict.fromkeys(splits, 0.0)
    with StoreWriter(
        out,
        domain="audio",
        spec=mel.as_dict(),
        categories={"speakers": speakers} if speakers else None,
        provenance={
            "source": speech.name,
            **speech.notes,
            "left out": {reason: len(names) for reason, names in speech.left_out.items()},
            "available": available,
            "options": {"split_by": split_by, "val_fraction": val_fraction, "test_fraction": test_fraction}
            | {"limit": limit, "seed": seed},
        },
    ) as writer:
        names: dict[str, list[str]] = {}
        for split, utterances in splits.items():
            converted = _converted(utterances, mel, mels, workers, f"preparing {split}", stats[split])
            kept: list[str] = []
            for batch in converted:
                fields: dict[str, Any] = {"waveforms": [w for _, w, _ in batch], "mels": [m for _, _, m in batch]}
                if speakers:
                    numbers = [speakers.index(str(utterance.speaker)) for utterance, _, _ in batch]
                    fields["speakers"] = np.array(numbers, np.int64)
                writer.append(split, fields)
                kept += [utterance.name for utterance, _, _ in batch]
                seconds[split] += sum(map(len, fields["waveforms"])) / mel.sample_rate
            if not kept:
                raise UserError(
                    f"{speech.name}: none of the utterances for {split} can be used: "
                    f"{stats[split].summary()}; add audio files, or change the split fractions."
                )
            names[split] = kept
        writer.provenance["splits"] = {split: counts.as_dict() for split, counts in stats.items()}
        writer.provenance["seconds"] = {split: round(duration, 2) for split, duration in seconds.items()}
        writer.provenance["shared with train"] = shared(splits, split_by)
        writer.provenance["names"] = names
    _report(out, speech, mel, speakers, stats, seconds, shared(splits, split_by), split_by)


def _open(source: str, seed: int) -> SpeechSource:
    if source == "espeak":
        from arflows.data.espeak import espeak

        return espeak(seed)
    if not Path(source).exists():
        raise UserError(f"there is no source {source!r}: give the path of a folder of audio files, or espeak.")
    return read_speech(Path(source))


def _speakers(splits: dict[str, list[Utterance]]) -> list[str]:
    """Return the speakers sorted by name, those of ``train`` first; empty if any speaker is unknown."""
    everyone = [u.speaker for utterances in splits.values() for u in utterances]
    if None in everyone:
        return []
    known = sorted({str(u.speaker) for u in splits["train"]})
    return known + sorted({str(speaker) for speaker in everyone} - set(known))


# ------------------------------------------------------------------------------------------------------- conversion


@dataclass(frozen=True)
class _Converted:
    """Conversion result of one utterance."""

    waveform: np.ndarray
    mel: np.ndarray
    remarks: tuple[str, ...]


def _convert(utterance: Utterance, mel: MelSpec, mels: str) -> _Converted | str:
    """Convert one utterance, or return the reason why it cannot be used."""
    try:
        clip = utterance.read(mel.sample_rate, mel.shortest + mel.hop)
    except SkippedAudio as reason:
        return str(reason)
    whole = len(clip.samples) // mel.hop * mel.hop  # an incomplete last hop has no frame
    waveform = to_int16(clip.samples[:whole])
    with torch.inference_mode():
        frames = log_mel(torch.from_numpy(from_int16(waveform))[None], mel)[0].T.numpy()
    return _Converted(waveform, frames.astype(mels), clip.remarks)


def _converted(
    utterances: Sequence[Utterance], mel: MelSpec, mels: str, workers: int, title: str, stats: ReadStats
) -> Iterator[list[tuple[Utterance, np.ndarray, np.ndarray]]]:
    """Convert in order and yield batches of utterance, waveform int16 (samples,) and mel (frames, bands)."""
    convert = partial(_convert, mel=mel, mels=mels)
    batch: list[tuple[Utterance, np.ndarray, np.ndarray]] = []
    bar = tqdm(utterances, title, unit=" utterances", leave=False, disable=None)
    for utterance, result in zip(bar, _in_order(convert, utterances, workers), strict=True):
        stats.read += 1
        if isinstance(result, str):
            stats.skipped[result].append(utterance.name)
            continue
        stats.written += 1
        stats.converted.update(result.remarks)
        batch.append((utterance, result.waveform, result.mel))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _in_order(convert: Any, utterances: Sequence[Utterance], workers: int) -> Iterator[_Converted | str]:
    if workers == 1:
        yield from map(convert, utterances)
        return
    context = multiprocessing.get_context("spawn")  # PyTorch's threads do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for start in range(0, len(utterances), BATCH * workers):  # bounds the results that wait for the writer
            yield from pool.map(convert, utterances[start : start + BATCH * workers], chunksize=8)


def _report(
    out: Path,
    speech: SpeechSource,
    mel: MelSpec,
    speakers: list[str],
    stats: dict[str, ReadStats],
    seconds: dict[str, float],
    leaks: dict[str, int],
    split_by: str,
) -> None:
    voices = f"{len(speakers)} speakers" if speakers else "unknown speakers"
    print(f"{out}: {mel.sample_rate:,} Hz, {mel.bands} mel bands, {voices}, from {speech.name}")
    if speech.left_out:
        print(f"  files left out: {ReadStats(skipped=speech.left_out).summary()}")
    for split, counts in stats.items():
        print(f"  {split:<5} {counts.written:>9,} utterances, {seconds[split] / 60:.1f} min")
        for step, count in sorted(counts.converted.items()):
            print(f"        {count:>9,} of them {step}")
        if counts.skipped:
            print(f"        skipped: {counts.summary()}")
        if split in leaks:
            print(f"        {leaks[split]:>9,} {split_by}s are also in train, as in the source")
