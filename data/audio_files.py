"""Audio files, converted to one channel at one sample rate.

Files are read by libsndfile: WAV, FLAC, Ogg, MP3 and more, at any rate, with any number of channels and bits. Each
conversion has a name, so that conversions can be counted over many files. Audio that cannot be used raises
`SkippedAudio` with the reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32, Int16

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf")
QUIETEST = 1e-4
"""A waveform that stays within ± this around its mean (-80 dB of full scale) holds nothing to learn."""
LOUDEST = 2.0
"""Samples of floating-point files above 1 are scaled down, unless they exceed this: then they are in other units."""
OPEN_ENDED = 2**31 - 1
"""Smallest length in the header of a WAV file that was written to a pipe, whose real length is unknown."""
CLIPPED_RUN = 8
"""Length of a run of samples at the largest value that counts as clipping."""


def is_audio(path: Path) -> bool:
    """Return True if a file has an audio suffix, or content that libsndfile reads."""
    if path.name.lower().endswith(AUDIO_SUFFIXES):
        return True
    try:
        soundfile.info(path)
    except (soundfile.SoundFileError, TypeError, ValueError, OSError):  # TypeError: raw samples, by their suffix
        return False
    return True


class SkippedAudio(Exception):
    """Audio cannot be used; the message says why in a few words, to be followed by file names."""


@dataclass(frozen=True)
class Clip:
    """One recording.

    Attributes:
        samples: In [-1, 1], at the rate that was asked for.
        remarks: Conversions of the samples, and unusual properties of the file.
    """

    samples: Float32[np.ndarray, " samples"]
    remarks: tuple[str, ...]


def read_audio(file: Path | BinaryIO, rate: int, shortest: int = 1) -> Clip:
    """Read a file and bring it to one channel at one rate.

    Args:
        file: The file, of any format, rate, number of channels and bits that libsndfile knows.
        rate: The rate to bring it to, in Hz; resampling keeps what lies below half of the lower rate.
        shortest: The fewest samples at that rate that are of use.

    Raises:
        SkippedAudio: The file is not audio, is damaged, or holds no usable sound.
    """
    if isinstance(file, Path):
        if not file.exists():
            raise SkippedAudio("missing")
        if file.is_dir():
            raise SkippedAudio("a folder")
        if not file.stat().st_size:
            raise SkippedAudio("empty")
    try:
        with soundfile.SoundFile(file) as opened:
            expected, subtype, given_rate = opened.frames, opened.subtype, opened.samplerate
            cut_short = _cut_short(opened.extra_info)
            samples = opened.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        unknown = "Format not recognised" in str(error) or "unimplemented format" in str(error)
        raise SkippedAudio("no audio" if unknown else "damaged") from error
    except OSError as error:
        raise SkippedAudio("unreadable") from error
    if cut_short or (
        len(samples) < expected and expected < 2**62
    ):  # the length of a stream is unknown before it is read
        raise SkippedAudio("truncated")
    return convert_audio(samples, given_rate, rate, subtype=subtype, shortest=shortest)


def convert_audio(
    samples: Float32[np.ndarray, "samples channels"], given_rate: int, rate: int, *, subtype: str, shortest: int = 1
) -> Clip:
    """Bring samples to one channel at one rate; see `read_audio`.

    Args:
        samples: In [-1, 1], as the file has them.
        given_rate: Their rate, in Hz.
        rate: The rate to bring them to, in Hz.
        subtype: How the file holds a sample, in libsndfile's words, such as ``PCM_24``.
        shortest: The fewest samples at that rate that are of use.

    Raises:
        SkippedAudio: The samples hold no usable sound.
    """
    remarks = [f"from {coding}"] if (coding := _coding(subtype)) else []
    if not len(samples):
        raise SkippedAudio("empty")
    if not np.isfinite(samples).all():
        raise SkippedAudio("with NaN or infinite samples")
    if samples.shape[1] > 1:
        remarks.append(f"mixed down from {samples.shape[1]} channels")
    mono = samples.mean(1)
    peak = float(np.abs(mono).max())
    if peak > LOUDEST:
        raise SkippedAudio("with samples far outside -1…1")
    if _is_clipped(mono, peak):
        remarks.append("clipped in places, kept as it is")
    if given_rate != rate:
        remarks.append(f"resampled from {given_rate:,} Hz")
        mono = soxr.resample(mono, given_rate, rate, quality="VHQ")
        peak = float(np.abs(mono).max()) if len(mono) else 0.0
    if len(mono) < shortest:
        raise SkippedAudio(f"shorter than {shortest} samples")
    spread = float(np.abs(mono - mono.mean()).max())
    if spread < QUIETEST:
        raise SkippedAudio("silent" if peak < QUIETEST else "of one constant value")
    if peak > 1:
        remarks.append("scaled down from peaks above 1")
        mono = mono / peak
    return Clip(np.ascontiguousarray(mono, np.float32), tuple(remarks))


def to_int16(samples: Float32[np.ndarray, " samples"]) -> Int16[np.ndarray, " samples"]:
    """Round samples in [-1, 1] to 16 bits: x becomes the whole number next to 32768 x."""
    return np.clip(np.rint(samples * 32_768), -32_768, 32_767).astype(np.int16)


def from_int16(samples: Int16[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Turn 16-bit samples into floats in [-1, 1), as libsndfile does."""
    return samples.astype(np.float32) / 32_768


def write_wav(path: Path, samples: Float32[np.ndarray, " samples"], rate: int) -> None:
    """Write samples in [-1, 1] as a 16-bit WAV file; what lies outside is cut off.

    Args:
        path: File to write.
        samples: Samples of one channel.
        rate: Sampling rate in Hz.
    """
    soundfile.write(path, to_int16(samples), rate, subtype="PCM_16", format="WAV")


def _coding(subtype: str) -> str | None:
    """Return the name of a sample format; None for 16 bits."""
    if subtype == "PCM_16":
        return None
    names = {"PCM_S8": "8 bits", "PCM_U8": "8 bits", "PCM_24": "24 bits", "PCM_32": "32 bits", "FLOAT": "floats"}
    names |= {"DOUBLE": "floats", "ULAW": "µ-law", "ALAW": "A-law", "VORBIS": "Vorbis", "OPUS": "Opus"}
    return names.get(subtype, "MP3" if subtype.startswith("MPEG") else subtype)


def _is_clipped(samples: Float32[np.ndarray, " samples"], peak: float) -> bool:
    """Return True if there is a run of samples at the largest value, near full scale."""
    if peak < 0.9:
        return False
    at_peak = np.concatenate([[False], np.abs(samples) >= peak * (1 - 1e-4), [False]])
    changes = np.flatnonzero(np.diff(at_peak))
    return bool((changes[1::2] - changes[::2]).max(initial=0) >= CLIPPED_RUN)


def _cut_short(log: str) -> bool:
    """Return True if libsndfile found less audio in a file than its header says."""
    lengths = re.findall(r"(?:data|SSND)\s*:\s*(\d+) \(should be (\d+)\)", log)
    return any(int(held) < int(declared) < OPEN_ENDED for declared, held in lengths)
