"""Input reading for the commands: speech for a trained model, one utterance at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from arflows.audio.datamodule import SpeechDataset
from arflows.audio.model import SpeechFlow
from arflows.audio.representation import Condition, MelSpec, log_mel
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.pretrained import training_facts
from arflows.data.arrays import read_hdf5, read_npy
from arflows.data.audio_files import AUDIO_SUFFIXES, SkippedAudio
from arflows.data.folders import walk
from arflows.data.read_stats import ReadStats
from arflows.data.speech_sources import SpeechSource, read_speech
from arflows.data.store import Store, is_store, opened

MEL_SUFFIXES = (".npy", ".h5", ".hdf5", ".pt")


@dataclass(frozen=True)
class Speech:
    """One utterance for a model.

    Attributes:
        name: Name of the utterance.
        waveform: (1, samples), whole frames, at the model's sample rate; None for a mel file.
        condition: Conditions that the model takes.
        mel: Log-mel spectrogram, (1, bands, frames), also if the model takes none.
    """

    name: str
    waveform: Float[Tensor, "1 samples"] | None
    condition: Condition
    mel: Float[Tensor, "1 bands frames"]


class SpeechInput:
    """Speech for a trained model: from a store, a folder of audio files, or one file.

    Unusable utterances are skipped; `skipped` lists them by reason.

    Attributes:
        count: Number of utterances, including those that will be skipped.
    """

    def __init__(
        self,
        source: Path | Store,
        flow: SpeechFlow,
        *,
        split: str = "test",
        speaker: str | None = None,
        speakers: Sequence[str] = (),
        limit: int | None = None,
    ) -> None:
        """Find the utterances and check that they fit the model.

        Args:
            source: Path of the utterances, or an open store.
            flow: The model.
            split: Split of a store.
            speaker: Speaker of all utterances, by name or index, for a multi-speaker model; None to take the speakers
                from the store or the folder names.
            speakers: Names of the model's speakers, as returned by `speaker_names`.
            limit: Use only the first utterances, at most this many.

        Raises:
            UserError: There are no utterances, they do not fit the model, or a store is damaged.
        """
        self._flow, self._speakers = flow, list(speakers)
        self._speaker = None if speaker is None else speaker_number(flow, speaker, speakers)
        self._stats = ReadStats()
        self.source = source
        self._store: SpeechDataset | None = None
        self._files = SpeechSource(str(source), [])
        store = opened(source, "audio")
        source = source.path if isinstance(source, Store) else source
        if store is not None:
            check_spec(source, MelSpec.from_dict(store.spec), flow.spec)
            named = flow.speakers > 0 and speaker is None
            self._store = SpeechDataset(store, split, speakers=named)
            self._names = store.provenance.get("names", {}).get(split) or [str(i) for i in range(len(self._store))]
            self._store_speakers = store.categories.get("speakers", [])
            self.count = len(self._store)
        else:
            self._files = read_speech(source)
            self.count = len(self._files.utterances)
        self.count = min(self.count, limit or self.count)

    @property
    def skipped(self) -> dict[str, list[str]]:
        """Names of the utterances skipped so far, by reason."""
        return dict(self._stats.skipped)

    @property
    def converted(self) -> dict[str, int]:
        """Number of files converted so far, by conversion."""
        return dict(self._stats.converted)

    def summary(self) -> str:
        """Return a summary of the utterances skipped so far: number, reason and the first few names."""
        return self._stats.summary()

    def utterances(self, progress: str | None = None) -> Iterator[Speech]:
        """Read the utterances in order, from the first.

        Args:
            progress: Title of the progress bar; None for no bar.
        """
        self._stats = ReadStats()
        for index in tqdm(range(self.count), progress, unit=" utterances", disable=None if progress else True):
            try:
                yield self._stored(index) if self._store is not None else self._recorded(index)
            except SkippedAudio as reason:
                name = self._names[index] if self._store is not None else self._files.utterances[index].name
                self._stats.skipped[str(reason)].append(name)

    def _stored(self, index: int) -> Speech:
        assert self._store is not None
        batch = self._store.__getitems__([index])
        speaker = self._store_speakers[int(batch["speaker"][0])] if "speaker" in batch else None
        return self._speech(self._names[index], batch["x"], batch["mel"], speaker)

    def _recorded(self, index: int) -> Speech:
        utterance, spec = self._files.utterances[index], self._flow.spec
        clip = utterance.read(spec.sample_rate, spec.shortest + spec.hop)
        self._stats.converted.update(clip.remarks)
        waveform = torch.from_numpy(clip.samples[: len(clip.samples) // spec.hop * spec.hop])[None]
        return self._speech(utterance.name, waveform, log_mel(waveform, spec), utterance.speaker)

    def _speech(self, name: str, waveform: Tensor, mel: Tensor, speaker_name: str | None) -> Speech:
        number = self._speaker
        if self._flow.speakers and number is None:
            if speaker_name is None:
                raise SkippedAudio("without a speaker label (add --speaker)")
            try:
                number = speaker_number(self._flow, speaker_name, self._speakers)
            except UserError as error:
                raise SkippedAudio("of a speaker unknown to the model") from error
        speaker = torch.tensor([number]) if self._flow.speakers else None
        return Speech(name, waveform, Condition(mel if self._flow.conditional else None, speaker), mel)


def read_mel(path: Path, spec: MelSpec) -> Float[Tensor, "1 bands frames"]:
    """Read a log-mel spectrogram from a file.

    Args:
        path: File with an array (bands, frames) or (1, bands, frames): .npy, .h5 with a single data set or one named
            mel, or a .pt tensor, which is read without running code.
        spec: Settings that the spectrogram must have; attributes of an .h5 file are compared with them.

    Raises:
        UserError: The spectrogram does not fit, or the file is damaged, leads to other files or holds no tensor.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}: check the path.")
    try:
        mel = _read_array(path, spec)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as a mel spectrogram ({error}): save it again.".replace("\n", " ")
        ) from error
    mel = mel[None] if mel.ndim == 2 else mel
    if mel.ndim != 3 or len(mel) != 1:
        raise UserError(f"{path} has shape {tuple(mel.shape)}: give one mel spectrogram, (bands, frames).")
    spec.check_mel(mel, str(path))
    return mel.float()


def _read_array(path: Path, spec: MelSpec) -> Tensor:
    if path.suffix == ".npy":
        return torch.from_numpy(read_npy(path))
    if path.suffix in (".h5", ".hdf5"):
        arrays = read_hdf5(path)
        name = "mel" if "mel" in arrays else next(iter(arrays)) if len(arrays) == 1 else None
        if name is None:
            raise UserError(f"{path} has {len(arrays)} data sets: name the one of the mel spectrogram mel.")
        with h5py.File(path, "r", locking=False) as file:
            attributes = {**file.attrs, **file[name].attrs}
        ours = spec.as_dict()
        try:
            given = MelSpec(**{**ours, **{key: type(ours[key])(attributes[key]) for key in ours if key in attributes}})
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        check_spec(path, given, spec)
        return torch.from_numpy(arrays[name])
    if path.suffix == ".pt":
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                    raise UserError(f"{path} is compressed, which could expand to any size: write it with torch.save.")
        value = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(value, Tensor):
            raise UserError(f"{path} holds a {type(value).__name__}: give a tensor (bands, frames).")
        return value
    raise UserError(f"{path} is not a mel spectrogram file: give {', '.join(MEL_SUFFIXES)}.")


def mel_files(source: Path) -> list[Path]:
    """Return the mel files that ``source`` is or contains; none if it contains audio."""
    if source.is_file():
        return [source] if source.suffix in MEL_SUFFIXES and not is_store(source) else []
    names = sorted(walk(source)) if source.is_dir() else []
    if any(name.lower().endswith(AUDIO_SUFFIXES) for name in names):
        return []
    return [source / name for name in names if name.endswith(MEL_SUFFIXES)]


def check_spec(source: Path, given: MelSpec, wanted: MelSpec) -> None:
    """Check that mel spectrograms have the model's settings.

    Args:
        source: File or folder named in the error message.
        given: Settings of the mel spectrograms.
        wanted: Settings of the model.

    Raises:
        UserError: The settings differ; the message names each difference.
    """
    if differences := wanted.differences(given):
        options = " ".join(
            f"--mel.{name} {value}" for name, value in wanted.as_dict().items() if value != given.as_dict()[name]
        )
        raise UserError(
            f"{source} does not fit the model, model ≠ speech: {', '.join(differences)}; prepare the speech with "
            f"{options}."
        )


def speaker_names(model: str) -> list[str]:
    """Return the names of the speakers that a model was trained on; empty if unknown."""
    names = (training_facts(model) or {}).get("data", {}).get("speakers", [])
    return [str(name) for name in names]


def speaker_number(flow: SpeechFlow, speaker: str, names: Sequence[str]) -> int:
    """Return a model's index of a speaker.

    Args:
        flow: The model.
        speaker: Name or index of the speaker.
        names: Names of the model's speakers.

    Raises:
        UserError: The model does not know the speaker, or has no speakers.
    """
    if not flow.speakers:
        raise UserError("the model has no speakers: leave --speaker out.")
    if speaker in names:
        return list(names).index(speaker)
    if speaker.isdecimal() and int(speaker) < flow.speakers and not names:
        return int(speaker)
    known = f"{', '.join(names[:10])}{', …' if len(names) > 10 else ''}" if names else f"0 to {flow.speakers - 1}"
    raise UserError(f"the model does not know the speaker {speaker!r}: give one of {known}.")
