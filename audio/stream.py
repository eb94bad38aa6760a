"""Streaming synthesis from standard input: ``arflows audio stream``."""

import sys
from collections.abc import Iterator
from io import BufferedReader
from typing import Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arflows.audio.inputs import speaker_names, speaker_number
from arflows.audio.model import SpeechFlow
from arflows.audio.representation import MelSpec, log_mel
from arflows.audio.streaming import stream as synthesise
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.option_types import PositiveFloat
from arflows.core.runtime.pretrained import load_model

READ = 65_536
"""Maximal number of bytes per read; a read returns what is available."""


def stream(
    model: str,
    given: Literal["mel", "audio"] = "mel",
    temperature: PositiveFloat = 0.8,
    speaker: str | None = None,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Read mel frames or audio from standard input, and write audio to standard output as it is synthesised.

    Mel frames are little-endian float32, frame by frame, with the model's settings. Input and output audio is 16-bit
    little-endian mono PCM at the model's sample rate. The output does not depend on how the input is cut into pieces.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        given: Kind of input: mel frames, or audio for copy synthesis.
        temperature: Multiplies the standard deviation of the latents; below 1 for less noise.
        speaker: Speaker, for a multi-speaker model.
        seed: Seed of the latents.
        device: Device: cpu, cuda, …; auto uses a GPU if available.
    """
    flow = load_model(SpeechFlow, model, device)
    if flow.speakers and speaker is None:
        raise UserError("the model has several speakers: add --speaker.")
    number = None if speaker is None else torch.tensor([speaker_number(flow, speaker, speaker_names(model))])
    source = cast(BufferedReader, sys.stdin.buffer)
    mels = mel_frames(source, flow.spec) if given == "mel" else analysed(source, flow.spec)
    for waveform in synthesise(flow, mels, number, temperature, seed):
        samples = (waveform[0].float().clamp(-1, 1) * 32_767).round().short().cpu().numpy()
        sys.stdout.buffer.write(samples.astype("<i2").tobytes())
        sys.stdout.buffer.flush()


def mel_frames(source: BufferedReader, spec: MelSpec) -> Iterator[Float[Tensor, "1 bands frames"]]:
    """Read log-mel frames of float32 as they arrive.

    Raises:
        UserError: If the values do not fit the settings, or the last frame is incomplete.
    """
    for values in _arrays(source, "<f4", spec.bands, "mel frames"):
        mel = torch.from_numpy(values.astype(np.float32).reshape(1, -1, spec.bands)).mT
        spec.check_mel(mel, "the mel spectrogram on standard input")
        yield mel


def analysed(source: BufferedReader, spec: MelSpec) -> Iterator[Float[Tensor, "1 bands frames"]]:
    """Read 16-bit audio and compute its log-mel frames as they arrive; up to rounding the same as by `log_mel`.

    Raises:
        UserError: If the audio is too short for a frame.
    """
    before, after = (-(-samples // spec.hop) for samples in spec.margin)
    audio, first, done = torch.zeros(1, 0), 0, 0  # buffered samples, their first frame, number of frames returned
    for values in _arrays(source, "<i2", 1, "samples"):
        audio = torch.cat([audio, torch.from_numpy(values.astype(np.float32) / 32_768)[None]], 1)
        known = first + audio.shape[1] // spec.hop - after
        if known > done and audio.shape[1] >= spec.shortest:
            whole = audio[:, : audio.shape[1] // spec.hop * spec.hop]
            yield log_mel(whole, spec)[:, :, done - first : known - first]
            done, start = known, max(known - before, 0)
            audio, first = audio[:, (start - first) * spec.hop :], start
    mel = log_mel(audio, spec)
    yield mel[:, :, done - first :]


def _arrays(source: BufferedReader, kind: str, group: int, name: str) -> Iterator[np.ndarray]:
    """Read whole groups of numbers as they arrive."""
    size, buffer = np.dtype(kind).itemsize * group, b""
    while more := source.read1(READ):
        buffer += more
        whole = len(buffer) // size * size
        if whole:
            yield np.frombuffer(buffer[:whole], kind)
            buffer = buffer[whole:]
    if buffer:
        raise UserError(
            f"the {name} on standard input end in the middle of one ({len(buffer)} of {size} bytes): send whole ones."
        )
