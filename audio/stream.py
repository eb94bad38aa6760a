"""Synthesise speech while it still arrives: ``arflows audio stream``."""

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
"""Bytes read at once, at most; whatever has arrived is taken at once."""


def stream(
    model: str,
    given: Literal["mel", "audio"] = "mel",
    temperature: PositiveFloat = 0.8,
    speaker: str | None = None,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Read mel frames or audio from standard input, and write audio to standard output as it comes.

    Mel frames are little-endian float32, the bands of one frame after those of the other, made with the model's
    settings. Audio is 16-bit PCM, little-endian, of one channel at the model's sample rate: both what is read and what
    is written. How the input is cut into pieces makes no difference to the output.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        given: What is read: mel frames, or audio that is analysed and synthesised anew.
        temperature: Multiplies the standard deviation of the latents; below 1 for less noise.
        speaker: Who speaks, for a model of several speakers.
        seed: Seed of the latents.
        device: Where to compute: cpu, cuda, …; auto takes a GPU if there is one.
    """
    flow = load_model(SpeechFlow, model, device)
    if flow.speakers and speaker is None:
        raise UserError("the model has several speakers: add --speaker.")
    number = None if speaker is None else torch.tensor([speaker_number(flow, speaker, speaker_names(model))])
    source = cast(BufferedReader, sys.stdin.buffer)
    read = mel_frames(source, flow.spec) if given == "mel" else analysed(source, flow.spec)
    for waveform in synthesise(flow, read, number, temperature, seed):
        samples = (waveform[0].float().clamp(-1, 1) * 32_767).round().short().cpu().numpy()
        sys.stdout.buffer.write(samples.astype("<i2").tobytes())
        sys.stdout.buffer.flush()


def mel_frames(source: BufferedReader, spec: MelSpec) -> Iterator[Float[Tensor, "1 bands frames"]]:
    """Log-mel frames from a file of float32, as they arrive.

    Raises:
        UserError: If they cannot be mel frames of this kind, or the last one is not whole.
    """
    for values in _arrays(source, "<f4", spec.bands, "mel frames"):
        mel = torch.from_numpy(values.astype(np.float32).reshape(1, -1, spec.bands)).mT
        spec.check_mel(mel, "what was read from standard input")
        yield mel


def analysed(source: BufferedReader, spec: MelSpec) -> Iterator[Float[Tensor, "1 bands frames"]]:
    """Log-mel frames of 16-bit audio that arrives: those of the whole audio by `log_mel`, up to rounding.

    Raises:
        UserError: If there is too little audio for a frame.
    """
    before, after = (-(-samples // spec.hop) for samples in spec.margin)
    heard, first, done = torch.zeros(1, 0), 0, 0  # samples kept, the frame that they begin at, frames given
    for values in _arrays(source, "<i2", 1, "samples"):
        heard = torch.cat([heard, torch.from_numpy(values.astype(np.float32) / 32_768)[None]], 1)
        known = first + heard.shape[1] // spec.hop - after
        if known > done and heard.shape[1] >= spec.shortest:
            whole = heard[:, : heard.shape[1] // spec.hop * spec.hop]
            yield log_mel(whole, spec)[:, :, done - first : known - first]
            done, start = known, max(known - before, 0)
            heard, first = heard[:, (start - first) * spec.hop :], start
    mel = log_mel(heard, spec)
    yield mel[:, :, done - first :]


def _arrays(source: BufferedReader, kind: str, group: int, name: str) -> Iterator[np.ndarray]:
    """Whole groups of numbers, as they arrive."""
    size, left = np.dtype(kind).itemsize * group, b""
    while more := source.read1(READ):
        left += more
        whole = len(left) // size * size
        if whole:
            yield np.frombuffer(left[:whole], kind)
            left = left[whole:]
    if left:
        raise UserError(f"the {name} on standard input end in the midst of one: {len(left)} of {size} bytes.")
