"""Speech synthesis with a trained flow: ``arflows audio sample``."""

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
    """Synthesise speech from recordings, from mel files, or unconditionally.

    Recordings are converted to mel spectrograms and back (copy synthesis). Mel files (.npy, .h5, .pt) contain one
    log-mel spectrogram each, (bands, frames), with the model's settings. A model without mel spectrograms samples
    unconditionally. With --gap, that part of each recording is inpainted, and the log-likelihood is reported.

    Writes a folder of 16-bit WAV files, named like their sources, and samples.csv with one line per file. The same seed
    gives the same waveforms up to rounding on every device, for any number of processes and any other inputs.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        out: Folder to write; it must be empty or not exist.
        speech: Recordings (a folder, a file, a store), or mel spectrograms (a folder of mel files, or one).
        gap: Start and end in seconds of a gap to inpaint in each recording, instead of copy synthesis.
        count: Number of waveforms per recording or mel file, or in total without input.
        seconds: Length of unconditional samples.
        temperature: Multiplies the standard deviation of the latents; below 1 for less noise.
        temperature_unvoiced: Temperature of unvoiced speech, if different; for models that support it, such as
            PredictiveFlow.
        speaker: Speaker, for a multi-speaker model; by default that of the recording.
        split: Split of a store.
        limit: Use only the first recordings, at most this many.
        seed: Seed of the latents.
        solver: Solver that inverts the flow; all solvers give the same waveforms.
        device: Device: cpu, cuda, …; auto uses a GPU if available.
    """
    if gap is not None and temperature_unvoiced is not None:
        raise UserError("--gap uses one temperature: leave --temperature_unvoiced out.")
    flow = load_model(SpeechFlow, model, device)
    names = speaker_names(model)
    if speech is None and (flow.conditional or gap is not None):
        action = "fills in recordings" if gap is not None else "needs mel spectrograms"
        raise UserError(f"the model {action}: give --speech, a folder of recordings or of mel files.")
    temperatures = temperature_pair(temperature, temperature_unvoiced)
    with new_folder(out) as folder, use_solver(SOLVERS[solver]()):
        if speech is None:
            number = None if not flow.speakers else speaker_number(flow, speaker or "", names)
            written = _sample_unconditional(flow, folder, count, seconds, temperatures, number, seed)
        else:
            source = _Source(speech, flow, names, split, speaker, limit)
            written = _vocode(flow, source, folder, gap, count, temperatures, seed)
            if not written:
                raise UserError(f"{speech} has no input that can be synthesised: {source.summary()}.")
            if source.summary():
                print(f"skipped: {source.summary()}")
    printed = f"{temperature:g}" + ("" if temperature_unvoiced is None else f" and {temperature_unvoiced:g} unvoiced")
    print(f"{out}: {written} waveforms, temperature {printed}, seed {seed}")


class _Source:
    """Recordings or mel files to synthesise."""

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
            raise UserError(f"{source} has no speaker labels: add --speaker.")

    def utterances(self) -> Iterator[Speech]:
        """Read the utterances in order; unusable ones are skipped and reported by `summary`."""
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
        """Record a skipped utterance."""
        self._skipped.setdefault(reason.rstrip("."), []).append(name)

    def summary(self) -> str:
        """Return a summary of the skipped utterances and the reasons."""
        parts = [f"{', '.join(names)}: {reason}" for reason, names in self._skipped.items()]
        return ", ".join([*parts, *filter(None, [self._speech.summary() if self._speech is not None else ""])])


class _Result(NamedTuple):
    """Synthesis of an utterance.

    Attributes:
        name: Name of the utterance.
        waveforms: (count, samples); None if the utterance was skipped.
        scores: Log-likelihood of each waveform in nats per sample, if a gap was filled.
        seconds: Duration of the synthesis.
        reason: Reason for skipping it.
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
    """Synthesise every recording or mel file, and return the number of waveforms."""
    rate = flow.spec.sample_rate

    def work(_: int, utterance: Speech) -> _Result:
        generator = torch_generator(seed, "utterance")  # independent of the other files of a folder
        start = time.perf_counter()
        scores: Tensor | None = None
        if gap is None:
            waveforms = synthesise(flow, utterance, count, temperature, generator)
        else:
            assert not isinstance(temperature, tuple)
            try:
                waveforms, scores = fill(flow, utterance, gap, count, temperature, generator)
            except UserError as error:
                return _Result(utterance.name, reason=str(error))
        return _Result(utterance.name, waveforms, scores, time.perf_counter() - start)

    stems = FileNames((*AUDIO_SUFFIXES, *MEL_SUFFIXES))
    rows: list[list[str]] = []
    spoken = busy = 0.0
    for result in distributed_map(source.utterances(), work):
        if result.waveforms is None:
            source.skip(result.name, result.reason)
            continue
        busy += result.seconds
        spoken += result.waveforms.numel() / rate
        stem = stems(result.name)
        for index, waveform in enumerate(result.waveforms):
            name = f"{stem}.wav" if count == 1 else f"{stem}-{index}.wav"
            write_wav(folder / name, waveform.numpy(), rate)
            rows.append([name, result.name, f"{len(waveform) / rate:.3f}"])
            rows[-1] += [] if result.scores is None else [f"{result.scores[index]:.6f}"]
    if rows:
        _write_table(folder, rows, [] if gap is None else ["log_likelihood"])
        print(f"{spoken:.1f} s of speech in {busy:.1f} s: {spoken / busy:.2f} × real time in each process")
    return len(rows)


def synthesise(
    flow: SpeechFlow, utterance: Speech, count: int, temperature: Temperature, generator: torch.Generator
) -> Float[Tensor, "count samples"]:
    """Sample waveforms from an utterance's mel spectrogram; an unconditional model uses its length only.

    Args:
        flow: The model.
        utterance: Utterance to synthesise.
        count: Number of waveforms.
        temperature: Factor of the standard deviation of the latents.
        generator: Random generator of the latents.

    Returns:
        Waveforms, nominally in [-1, 1], on the CPU.
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
    """Fill a gap in a recording by `inpaint`.

    Args:
        flow: The model.
        utterance: Recording.
        gap: Start and end of the gap in seconds.
        count: Number of draws.
        temperature: Temperature of the draws.
        generator: Random generator, on the CPU.

    Returns:
        The filled recordings, and the log-likelihood of each whole recording in nats per sample.

    Raises:
        UserError: The gap does not lie in the recording, or the utterance is a mel spectrogram.
    """
    if utterance.waveform is None:
        raise UserError(f"{utterance.name} is a mel spectrogram: give a recording to fill a gap.")
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


def _sample_unconditional(
    flow: SpeechFlow, folder: Path, count: int, seconds: float, temperature: Temperature, speaker: int | None, seed: int
) -> int:
    """Sample waveforms from a model without mel spectrograms, and return their number."""
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
