"""Built-in speech: sentences of this project, spoken by eSpeak NG, for trying things out without a download.

The synthesiser comes as a library in the wheel ``espeakng-loader`` and is driven through its C interface. It speaks
hundreds of times faster than a person.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import espeakng_loader
import numpy as np
from jaxtyping import Int16

from arflows.core.runtime.errors import UserError
from arflows.data.audio_files import Clip, convert_audio
from arflows.data.sentences import SENTENCES
from arflows.data.speech_sources import SpeechSource, Utterance

VOICES = {"ada": "en-us+f2", "ben": "en-us+m3", "cleo": "en+f4", "dan": "en-gb-x-rp+m7", "eve": "en-029+f1"}
"""eSpeak NG's voice and variant of each speaker."""
READINGS = 2
"""Number of speakers that read each sentence."""
ROOM = 2e-4
"""Standard deviation of added noise: recordings have some, and the density of exact zeros is unbounded."""

_SYNCHRONOUS, _CHARACTERS, _UTF8 = 2, 1, 1  # of the C interface: where sound goes, positions count, the text's encoding
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # of its parameters


@dataclass(frozen=True, kw_only=True)
class SpokenUtterance(Utterance):
    """A sentence that eSpeak NG speaks.

    Attributes:
        voice: eSpeak NG's voice and variant, such as ``en-us+f2``.
        pitch: 0 … 100; 50 is the voice's own.
        rate: Words a minute.
        seed: Seed of the noise.
    """

    voice: str
    pitch: int
    rate: int
    seed: int

    def read(self, rate: int, shortest: int = 1) -> Clip:
        """Speak, with a little noise."""
        assert self.text is not None
        spoken, own_rate = speak(self.text, self.voice, self.pitch, self.rate, self.seed)
        noise = np.random.default_rng(self.seed).standard_normal(len(spoken), np.float32)
        samples = (spoken / 32_768).astype(np.float32) + ROOM * noise
        return convert_audio(samples[:, None], own_rate, rate, subtype="PCM_16", shortest=shortest)


def espeak(seed: int = 0) -> SpeechSource:
    """Return each of the project's sentences read by two of five speakers, at a pitch and speed of its own.

    Args:
        seed: Seed of the choice of speakers, pitches and speeds.
    """
    generator = np.random.default_rng(seed)
    speakers = list(VOICES)
    utterances = [
        SpokenUtterance(
            name=f"{speaker}-{index:03d}",
            text=text,
            speaker=speaker,
            voice=VOICES[speaker],
            pitch=int(generator.integers(35, 66)),
            rate=int(generator.integers(140, 191)),
            seed=int(generator.integers(2**31)),
        )
        for index, text in enumerate(SENTENCES)
        for speaker in sorted(generator.permutation(speakers)[:READINGS].tolist())
    ]
    return SpeechSource("espeak", utterances, {"origin": "eSpeak NG through espeakng-loader; the project's sentences"})


def speak(text: str, voice: str, pitch: int, rate: int, seed: int = 0) -> tuple[Int16[np.ndarray, " samples"], int]:
    """Speak a text; the same arguments give the same samples.

    Args:
        text: What to say.
        voice: eSpeak NG's voice and variant.
        pitch: 0 … 100; 50 is the voice's own.
        rate: Words a minute.
        seed: Seed of the noise.

    Returns:
        The samples, and their rate in Hz.

    Raises:
        UserError: The voice does not exist, or the synthesiser failed.
    """
    parts: list[np.ndarray] = []

    def receive(samples: Any, count: int, events: int | None) -> int:
        if samples and count > 0:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _CALLBACK(receive)
    encoded = text.encode() + b"\0"
    with _synthesiser(seed) as (library, own_rate):
        if library.espeak_SetVoiceByName(voice.encode()):
            raise UserError(f"eSpeak NG has no voice {voice!r}: choose one of its voices, such as en-us+f2.")
        for parameter, value in ((_RATE, rate), (_VOLUME, 60), (_PITCH, pitch), (_RANGE, 50)):
            library.espeak_SetParameter(parameter, value, 0)
        library.espeak_SetSynthCallback(callback)
        if library.espeak_Synth(encoded, len(encoded), 0, _CHARACTERS, 0, _UTF8, None, None):
            raise UserError(f"eSpeak NG could not speak {text!r}: install espeakng-loader again.")
        library.espeak_Synchronize()
    return np.concatenate(parts) if parts else np.empty(0, np.int16), own_rate


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@contextmanager
def _synthesiser(seed: int) -> Iterator[tuple[ctypes.CDLL, int]]:
    """Load the library, and yield it with its sample rate.

    Its output depends on earlier speech, even after a restart; only unloading resets it.
    """
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
    library.espeak_SetSynthCallback.argtypes = [_CALLBACK]
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    try:
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if rate <= 0:
            raise UserError("eSpeak NG does not start: install espeakng-loader again.")
        library.espeak_ng_SetRandSeed(seed)
        yield library, rate
        library.espeak_Terminate()
    finally:
        getattr(_ctypes, "FreeLibrary" if os.name == "nt" else "dlclose")(library._handle)
