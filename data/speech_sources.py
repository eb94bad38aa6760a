"""Sources of speech: utterances in files or made on the spot, with their texts, speakers and splits."""

from __future__ import annotations

import csv
import dataclasses
import re
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from arflows.core.runtime.errors import UserError
from arflows.data.audio_files import AUDIO_SUFFIXES, Clip, is_audio, read_audio
from arflows.data.folders import SPLIT_NAMES, printable, walk

LJSPEECH_CLIPS = 13_100
LJSPEECH_HELD_OUT = 1310
"""The literature (WaveGlow, WaveFlow) holds out the first tenth of LJSpeech's clips."""


@dataclass(frozen=True, kw_only=True)
class Utterance(ABC):
    """An utterance, read on demand.

    Attributes:
        name: Name in messages, such as its path below the source's folder.
        text: The words, if known.
        speaker: Name of the speaker, if known.
        split: Split that the source itself assigns, if any.
    """

    name: str
    text: str | None = None
    speaker: str | None = None
    split: str | None = None

    @abstractmethod
    def read(self, rate: int, shortest: int = 1) -> Clip:
        """Return the waveform at a rate; see `arflows.data.audio_files.read_audio`."""


@dataclass(frozen=True, kw_only=True)
class Recording(Utterance):
    """An utterance in a file.

    Attributes:
        file: Where it is.
    """

    file: Path

    def read(self, rate: int, shortest: int = 1) -> Clip:
        """Read the file."""
        return read_audio(self.file, rate, shortest)


@dataclass
class SpeechSource:
    """A set of recordings.

    Attributes:
        name: The name or path a user gave.
        utterances: In the order of the source.
        notes: Facts about the source for the provenance.
        left_out: Files of the source that are not utterances, by the reason.
    """

    name: str
    utterances: Sequence[Utterance]
    notes: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)


def read_speech(path: Path) -> SpeechSource:
    """Find the utterances of a folder.

    Known layouts are LJSpeech, VCTK, LibriTTS, and a ``metadata.csv`` of lines ``id|text|split``. Any other folder is
    taken by its audio files, those below ``train``, ``val`` and ``test`` as these splits; its subfolders are speakers
    if there are at least two and no file lies beside them.

    Raises:
        UserError: The folder does not exist, or has no audio.
    """
    if path.is_file():
        if not is_audio(path):
            raise UserError(f"{path} is no audio file: give one, a folder of them, or a built-in source.")
        return SpeechSource(str(path), [Recording(name=path.name, file=path)])
    if not path.is_dir():
        raise UserError(f"there is no {path}: give a folder of audio files, or the name of a built-in source.")
    if (path / "metadata.csv").is_file():
        return _with_metadata(path)
    files, others = _audio_files(path)
    if not files:
        raise UserError(f"{path} holds no audio files: give a folder with {', '.join(AUDIO_SUFFIXES[:3])}, … in it.")
    for layout in (_vctk, _libritts, _plain):
        if (source := layout(path, files)) is not None:
            used = {u.file for u in source.utterances if isinstance(u, Recording)}
            unused = [name for name in files if path / name not in used]
            source.left_out |= {
                reason: list(map(printable, names))
                for reason, names in (("no audio", others), (f"not in the layout {source.notes['layout']}", unused))
                if names
            }
            return source
    raise AssertionError("any folder is a plain one")


# ---------------------------------------------------------------------------------------------------------- layouts


def _audio_files(path: Path) -> tuple[list[str], list[str]]:
    """Return the audio files below a folder, and the other files."""
    files: list[str] = []
    others: list[str] = []
    for name in sorted(walk(path)):
        (files if is_audio(path / name) else others).append(name)
    return files, others


def _with_metadata(path: Path) -> SpeechSource:
    """LJSpeech (``id|text|normalised text``), or the same with a split in the third column."""
    table = path / "metadata.csv"
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, delimiter="|", quoting=csv.QUOTE_NONE) if row]
    except UnicodeDecodeError as error:
        raise UserError(f"{table} is not text in UTF-8: save it as such, with lines id|text|split.") from error
    if rows and [cell.strip().lower() for cell in rows[0][:2]] == ["id", "text"]:
        rows = rows[1:]
    if not rows or any(len(row) < 2 for row in rows):
        raise UserError(f"{table} must have lines id|text or id|text|split: correct it, or remove it to use all files.")
    ids = [row[0].strip() for row in rows]
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise UserError(
            f"{table} has the id {twice!r} in several lines, so a recording could be in training and in test at once: "
            "give each recording one line."
        )
    known = {name: split for split, names in SPLIT_NAMES.items() for name in names} | {"dev": "val"}
    splits = [known.get(row[2].strip().lower()) if len(row) > 2 else None for row in rows]
    if any(splits) and not all(splits):
        wrong = rows[splits.index(None)]
        raise UserError(
            f"{table} gives {wrong[0]} the split {wrong[2] if len(wrong) > 2 else ''!r}: give every line train, val or "
            "test, or none."
        )
    files, others = _audio_files(path)
    by_id = _by_id(files)
    file_of = {name: _file_of(table, name, by_id) for name in ids}
    utterances = [
        Recording(
            name=printable(name),
            file=path / (file_of[name] or f"wavs/{name}.wav"),
            text=row[1] if split else row[-1],
            split=split,
        )
        for name, row, split in zip(ids, rows, splits, strict=True)
    ]
    listed = Counter(file for file in file_of.values() if file)
    if listed and (shared_file := listed.most_common(1)[0])[1] > 1:
        raise UserError(f"{table} names the file {shared_file[0]} by several ids: give each recording one line.")
    unlisted = sorted(set(files) - set(listed))
    left_out = {"no audio": [name for name in others if name != table.name], "not in metadata.csv": unlisted}
    left_out = {reason: list(map(printable, names)) for reason, names in left_out.items() if names}
    notes: dict[str, Any] = {"layout": "metadata.csv"} | (
        {"files not in metadata.csv": len(unlisted)} if unlisted else {}
    )
    if not any(splits) and len(rows) == LJSPEECH_CLIPS and all(re.fullmatch(r"LJ\d{3}-\d{4}", row[0]) for row in rows):
        notes = {"layout": "LJSpeech", "test": f"the first {LJSPEECH_HELD_OUT} clips, as in the literature"}
        order = sorted(utterances, key=lambda utterance: utterance.name)
        utterances = [
            dataclasses.replace(utterance, split="test" if index < LJSPEECH_HELD_OUT else "train")
            for index, utterance in enumerate(order)
        ]
    return SpeechSource(str(path), utterances, notes, left_out)


def _by_id(files: Sequence[str]) -> dict[str, list[str]]:
    """Return the files that each id may mean: its path, its path below ``wavs``, its name; with suffix or without."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in files:
        relative = name.removeprefix("wavs/")
        for spelling in {name, relative, name.rpartition("/")[2]}:
            found[spelling].append(name)
            found[spelling.rpartition(".")[0]].append(name)
    return found


def _file_of(table: Path, name: str, by_id: Mapping[str, list[str]]) -> str | None:
    """Return the file of an id; None if there is none.

    Of several files the one in ``wavs``, or beside the table, is meant.

    Raises:
        UserError: Several files have this name, none of them there.
    """
    found = by_id.get(name, [])
    near = [file for file in found if file.removeprefix("wavs/").rpartition(".")[0] == name] or found
    near = [file for file in near if file.startswith("wavs/")] or near
    if len(set(near)) > 1:
        raise UserError(
            f"{table}: the id {name!r} may be {', '.join(sorted(set(near))[:3])}: write the path below the folder as "
            "the id, or remove the files that are not meant."
        )
    return near[0] if near else None


def _vctk(path: Path, files: Sequence[str]) -> SpeechSource | None:
    """``wav48…/p225/p225_001_mic1.flac`` or ``….wav``, with ``txt/p225/p225_001.txt``; of two microphones the first."""
    pattern = re.compile(r"wav48\w*/([ps]\d+)/(\1_\d+)(?:_mic([12]))?\.\w+")
    found = [(name, match) for name in files if (match := pattern.fullmatch(name))]
    if not found:
        return None
    microphones = {match[3] for _, match in found}
    utterances = [
        Recording(
            name=name, file=path / name, text=_text(path / "txt" / match[1] / f"{match[2]}.txt"), speaker=match[1]
        )
        for name, match in found
        if match[3] != "2" or "1" not in microphones
    ]
    return SpeechSource(str(path), utterances, {"layout": "VCTK"})


def _libritts(path: Path, files: Sequence[str]) -> SpeechSource | None:
    """``train-clean-100/103/1241/103_1241_000000_000001.wav`` with ``….normalized.txt`` beside it."""
    pattern = re.compile(r"(?:(train|dev|test)-(?:clean|other)(?:-\d+)?/)?(\d+)/(\d+)/\2_\3_\d+(?:_\d+)?\.\w+")
    found = [(name, match) for name in files if (match := pattern.fullmatch(name))]
    if not found:
        return None
    names = {"train": "train", "dev": "val", "test": "test"}
    brings_splits = "train" in {match[1] for _, match in found}
    utterances = [
        Recording(
            name=name,
            file=path / name,
            text=_text((path / name).with_suffix(".normalized.txt")),
            speaker=match[2],
            split=names[match[1]] if brings_splits and match[1] else None,
        )
        for name, match in found
    ]
    return SpeechSource(str(path), utterances, {"layout": "LibriTTS"})


def _plain(path: Path, files: Sequence[str]) -> SpeechSource:
    split_of = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    tops = {name.split("/", 1)[0] for name in files if "/" in name}
    brings_splits = "train" in tops and all("/" in name for name in files) and tops <= set(split_of)
    inner = {name: name.split("/", 1)[1] if brings_splits else name for name in files}
    folders = {name.split("/", 1)[0] for name in inner.values() if "/" in name}
    has_speakers = len(folders) > 1 and all("/" in name for name in inner.values())
    utterances = [
        Recording(
            name=printable(name),
            file=path / name,
            speaker=printable(inner[name].split("/", 1)[0]) if has_speakers else None,
            split=split_of[name.split("/", 1)[0]] if brings_splits else None,
        )
        for name in files
    ]
    return SpeechSource(str(path), utterances, {"layout": "folder"})


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None


# ----------------------------------------------------------------------------------------------------------- splits


def assign_splits(
    utterances: Sequence[Utterance],
    by: Literal["sentence", "speaker"],
    fractions: Mapping[str, float],
    generator: np.random.Generator,
) -> dict[str, list[Utterance]]:
    """Give every utterance a split, so that nothing of one is heard in another.

    Splits that the source brings are kept, and utterances are set aside from ``train`` for those it lacks. All
    utterances of one sentence (or of one speaker) go to the same split; one without a text is a sentence of its own.

    Args:
        utterances: The utterances.
        by: Property that the splits must not share.
        fractions: For ``val`` and ``test`` the part of the training utterances that is set aside.
        generator: Decides which.

    Returns:
        ``train`` first, then those of ``val`` and ``test`` that have utterances; each in the order of the source.

    Raises:
        UserError: Nothing is left for training, or the speakers are not known.
    """
    if by == "speaker" and any(utterance.speaker is None for utterance in utterances):
        raise UserError("split_by speaker needs to know who speaks: give a folder for each speaker, or a known layout.")
    key: Callable[[Utterance], str] = (lambda u: str(u.speaker)) if by == "speaker" else sentence
    chosen: dict[str, list[Utterance]] = {"train": [u for u in utterances if u.split in (None, "train")]}
    for split in ("val", "test"):
        brought = [u for u in utterances if u.split == split]
        wanted = fractions.get(split, 0.0)
        if brought or not wanted:
            chosen[split] = brought
            continue
        count = max(1, round(wanted * sum(u.split in (None, "train") for u in utterances)))
        aside = _set_aside(chosen["train"], key, count, generator)
        chosen[split] = [u for u in chosen["train"] if key(u) in aside]
        chosen["train"] = [u for u in chosen["train"] if key(u) not in aside]
    if not chosen["train"]:
        raise UserError(
            f"of {len(utterances)} utterances none is left for training once val and test are set aside: give more, or "
            "lower val_fraction and test_fraction."
        )
    return {split: chosen[split] for split in chosen if chosen[split]}


def shared(splits: Mapping[str, Iterable[Utterance]], by: Literal["sentence", "speaker"]) -> dict[str, int]:
    """Count what splits share with ``train``: the sentences (or speakers) of val and test that occur in it."""
    key: Callable[[Utterance], str] = (lambda u: str(u.speaker)) if by == "speaker" else sentence
    trained = {key(utterance) for utterance in splits["train"]}
    counts = {split: len({key(u) for u in splits[split]} & trained) for split in splits if split != "train"}
    return {split: count for split, count in counts.items() if count}


def sentence(utterance: Utterance) -> str:
    """Return the words of an utterance in lower case, without punctuation; its name if the text is not known."""
    words = re.findall(r"\w+", (utterance.text or "").casefold())
    return " ".join(words) if words else f"/{utterance.name}"


def _set_aside(
    utterances: Sequence[Utterance], key: Callable[[Utterance], str], count: int, generator: np.random.Generator
) -> set[str]:
    """Choose groups at random until they hold ``count`` utterances."""
    groups: dict[str, int] = defaultdict(int)
    for utterance in utterances:
        groups[key(utterance)] += 1
    names = sorted(groups)
    order = [names[index] for index in generator.permutation(len(names))]
    held = np.cumsum([groups[name] for name in order])
    return set(order[: int(np.searchsorted(held, count)) + 1])
