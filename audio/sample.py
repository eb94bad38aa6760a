"""Synthesise speech with a trained flow: ``arflows audio sample``."""

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from arflows.audio.inpainting import inpaint
from arflows.audio.inputs import MEL_SUFFIXES, Speech, SpeechInput, mel_files, read_mel, speaker_names, speaker_number
from arflows.audio.model import SpeechFlow
from arflows.audio.representation import Condition
from arflows.audio.speech_flow import Temperature, temperature_pair
from arflows.core.inversion import SOLVERS, SolverName, use_solver
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import new_folder
from arflows.core.runtime.noise import torch_generator
from arflows.core.runtime.option_types import PositiveFloat, PositiveInt
from arflows.core.runtime.pretrained import load_model
from arflows.core.runtime.processes import distributed_map
from arflows.data.audio_files import AUDIO_SUFFIXES, write_wav
from arflows.data.folders import FileNames


def sample(
    model: str,
    out: Path,
    speech: Path | None = None,
    gap: tuple[float, float] | None = None,
    count: PositiveInt = 1,
    seconds: PositiveFloat = 2.0,
    temperature: PositiveFloat = 0.8,
    temperature_unvoiced: PositiveFloat | None = None,
    speaker: str | None = None,
    split: str = "test",
    limit: PositiveInt | None = None,
    seed: int = 0,
    solver: SolverName = "sequential",
    device: str = "auto",
) -> None:
    """Synthesise speech: from recordings through their mel spectrograms, from mel files, or freely.

    Recordings are turned into mel spectrograms and back (copy synthesis). Mel files (.npy, .h5, .pt) hold one log-mel
    spectrogram each, (bands, frames), made with the model's settings. A model without mel spectrograms speaks freely.
    With a gap, that part of each recording is filled in anew, in several ways, each with its log-likelihood.

    Writes a folder of 16-bit WAV files, named as their sources, and samples.csv with one line for each. The same seed
    gives the same waveforms on every device, up to rounding, whatever else is synthesised beside them, and in any
    number of processes.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        out: Folder to write; it must not hold anything yet.
        speech: Recordings (a folder, a file, a store), or mel spectrograms (a folder of mel files, or one).
        gap: Fill in what lies between these two times of each recording, in seconds, instead.
        count: How many different waveforms for each recording or mel file, or freely.
        seconds: Length of what is spoken freely.
        temperature: Multiplies the standard deviation of the latents; below 1 for less noise.
        temperature_unvoiced: Of speech that is not voiced, if not the same, for a model that tells it apart, such as
            PredictiveFlow.
        speaker: Who speaks, for a model of several speakers; without it who speaks in the recording.
        split: Which part of a store.
        limit: Use at most so many recordings, the first.
        seed: Seed of the latents.
        solver: How the flow is inverted; all solvers give the same waveforms.
        device: Where to compute: cpu, cuda, …; auto takes a GPU if there is one.
    """
    if gap is not None and temperature_unvoiced is not None:
        raise UserError("a gap is filled at one temperature: leave --temperature_unvoiced out.")
    flow = load_model(SpeechFlow, model, device)
    names = speaker_names(model)
    if speech is None and (flow.conditional or gap is not None):
        what = "fills in recordings" if gap is not None else "needs mel spectrograms"
        raise UserError(f"the model {what}: give --speech, a folder of recordings or of mel files.")
    of_latents = temperature_pair(temperature, temperature_unvoiced)
    with new_folder(out) as folder, use_solver(SOLVERS[solver]()):
        if speech is None:
            number = None if not flow.speakers else speaker_number(flow, speaker or "", names)
            written = _speak(flow, folder, count, seconds, of_latents, number, seed)
        else:
            source = _Source(speech, flow, names, split, speaker, limit)
            written = _vocode(flow, source, folder, gap, count, of_latents, seed)
            if not written:
                raise UserError(f"{speech} holds nothing that can be synthesised: {source.summary()}.")
            if source.summary():
                print(f"skipped: {source.summary()}")
    told = f"{temperature:g}" + ("" if temperature_unvoiced is None else f" and {temperature_unvoiced:g} unvoiced")
    print(f"{out}: {written} waveforms, temperature {told}, seed {seed}")


class _Source:
    """Recordings or mel files."""

    def __init__(
        self, source: Path, flow: SpeechFlow, names: list[str], split: str, speaker: str | None, limit: int | None
    ) -> None:
        self._flow, self._skipped = flow, dict[str, list[str]]()
        self._mels = mel_files(source)[:limit]
        self._root = source if source.is_dir() else source.parent
        self._speech: SpeechInput | None = None
        self._number = None if speaker is None else speaker_number(flow, speaker, names)
        if not self._mels:
            self._speech = SpeechInput(source, flow, split=split, speaker=speaker, speakers=names, limit=limit)
        elif flow.speakers and speaker is None:
            raise UserError(f"{source} does not say who is to speak: add --speaker.")

    def utterances(self) -> Iterator[Speech]:
        """Reads in order; what cannot be used is skipped, and told by `reasons`."""
        if self._speech is not None:
            yield from self._speech.utterances("synthesising")
            return
        speaker = None if self._number is None else torch.tensor([self._number])
        for path in tqdm(self._mels, "synthesising", unit=" files", disable=None):
            try:
                mel = read_mel(path, self._flow.spec)
                if self._flow.training_mels is not None:
                    self._flow.training_mels.check(mel, str(path))
            except UserError as error:
                if len(self._mels) == 1:
                    raise
                self.skip(path.name, str(error).removeprefix(f"{path} "))
                continue
            yield Speech(path.relative_to(self._root).as_posix(), None, Condition(mel, speaker), mel)

    def skip(self, name: str, reason: str) -> None:
        """Notes that something could not be used."""
        self._skipped.setdefault(reason.rstrip("."), []).append(name)

    def summary(self) -> str:
        """What was skipped, and why."""
        parts = [f"{', '.join(names)}: {reason}" for reason, names in self._skipped.items()]
        return ", ".join([*parts, *filter(None, [self._speech.summary() if self._speech is not None else ""])])


class _Made(NamedTuple):
    """What became of an utterance.

    Attributes:
        name: What it is called.
        waveforms: (count, samples); None if there are none.
        scores: How likely each is, if something was filled in, in nats.
        seconds: How long it took.
        reason: Why there are none.
    """

    name: str
    waveforms: Tensor | None = None
    scores: Tensor | None = None
    seconds: float = 0.0
    reason: str = ""


def _vocode(
    flow: SpeechFlow,
    source: _Source,
    folder: Path,
    gap: tuple[float, float] | None,
    count: int,
    temperature: Temperature,
    seed: int,
) -> int:
    """Synthesises every recording or mel file, and says how many waveforms that made."""
    rate = flow.spec.sample_rate

    def work(_: int, utterance: Speech) -> _Made:
        generator = torch_generator(seed, "utterance")  # so that the others of a folder do not matter
        start = time.perf_counter()
        scores: Tensor | None = None
        if gap is None:
            waveforms = synthesise(flow, utterance, count, temperature, generator)
        else:
            assert not isinstance(temperature, tuple)
            try:
                waveforms, scores = fill(flow, utterance, gap, count, temperature, generator)
            except UserError as error:
                return _Made(utterance.name, reason=str(error))
        return _Made(utterance.name, waveforms, scores, time.perf_counter() - start)

    stems = FileNames((*AUDIO_SUFFIXES, *MEL_SUFFIXES))
    rows: list[list[str]] = []
    spoken = busy = 0.0
    for made in distributed_map(source.utterances(), work):
        if made.waveforms is None:
            source.skip(made.name, made.reason)
            continue
        busy += made.seconds
        spoken += made.waveforms.numel() / rate
        stem = stems(made.name)
        for index, waveform in enumerate(made.waveforms):
            name = f"{stem}.wav" if count == 1 else f"{stem}-{index}.wav"
            write_wav(folder / name, waveform.numpy(), rate)
            rows.append([name, made.name, f"{len(waveform) / rate:.3f}"])
            rows[-1] += [] if made.scores is None else [f"{made.scores[index]:.6f}"]
    if rows:
        _write_table(folder, rows, [] if gap is None else ["log_likelihood"])
        print(f"{spoken:.1f} s of speech in {busy:.1f} s: {spoken / busy:.2f} × real time in each process")
    return len(rows)


def synthesise(
    flow: SpeechFlow, utterance: Speech, count: int, temperature: Temperature, generator: torch.Generator
) -> Float[Tensor, "count samples"]:
    """Waveforms in [-1, 1] from an utterance's mel spectrogram, on the CPU; from its length alone if the model is free.

    Args:
        flow: The model.
        utterance: What is to be said.
        count: How many different waveforms.
        temperature: Multiplies the standard deviation of the latents.
        generator: Of the latents.
    """
    return flow.sample(
        count,
        **utterance.condition.keywords(flow.device),
        samples=None if flow.conditional else utterance.mel.shape[-1] * flow.spec.hop,
        temperature=temperature,
        generator=generator,
    ).cpu()


def fill(
    flow: SpeechFlow,
    utterance: Speech,
    gap: tuple[float, float],
    count: int,
    temperature: float,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "count samples"], Float[Tensor, " count"]]:
    """Ways of filling a gap in a recording, and the log-likelihood of each recording in nats per sample.

    Raises:
        UserError: The gap does not lie in the recording, or there is none to fill.
    """
    if utterance.waveform is None:
        raise UserError(f"{utterance.name} is a mel spectrogram: a gap is filled in a recording, give one.")
    rate, samples = flow.spec.sample_rate, utterance.waveform.shape[1]
    start, end = (round(time * rate) for time in gap)
    if not 0 <= start < end <= samples:
        raise UserError(
            f"the gap {gap[0]:g} … {gap[1]:g} s does not lie in {utterance.name}, of {samples / rate:.2f} s: give its "
            "start and end within the recording."
        )
    filled, log_likelihoods = inpaint(
        flow,
        utterance.waveform.to(flow.device),
        start,
        end,
        **utterance.condition.keywords(flow.device),
        count=count,
        temperature=temperature,
        generator=generator,
    )
    return filled.cpu(), log_likelihoods.cpu() / samples


def _speak(
    flow: SpeechFlow, folder: Path, count: int, seconds: float, temperature: Temperature, speaker: int | None, seed: int
) -> int:
    """Draws waveforms from a model without mel spectrograms."""
    spec = flow.spec
    frames = max(1, round(seconds * spec.sample_rate / spec.hop))

    def work(_: int, index: int) -> Tensor:
        return flow.sample(
            1,
            speaker=None if speaker is None else torch.tensor([speaker], device=flow.device),
            samples=frames * spec.hop,
            temperature=temperature,
            generator=torch_generator(seed, "waveform", index),
        )[0].cpu()

    rows = []
    waveforms = distributed_map(tqdm(range(count), "speaking", unit=" waveforms", disable=None), work)
    for index, waveform in enumerate(waveforms):
        write_wav(folder / f"{index:04d}.wav", waveform.numpy(), spec.sample_rate)
        rows.append([f"{index:04d}.wav", "", f"{len(waveform) / spec.sample_rate:.3f}"])
    _write_table(folder, rows, [])
    return count


def _write_table(folder: Path, rows: list[list[str]], more: list[str]) -> None:
    with (folder / "samples.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file", "source", "seconds", *more], *rows])
