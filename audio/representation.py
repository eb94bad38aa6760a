"""Waveforms in [-1, 1] and their log-mel spectrograms, with the settings of both."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from arflows.core.runtime.errors import UserError
from arflows.data.spec import Spec

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor


@dataclass(frozen=True)
class MelSpec(Spec):
    """Settings of waveform and mel spectrogram that data and model must share.

    The defaults are those of most vocoders trained on LJSpeech.

    >>> spec = MelSpec(bands=64)
    >>> spec.frames(22_050), spec.shortest, spec.margin
    (87, 1024, (384, 384))

    Attributes:
        sample_rate: Samples per second.
        n_fft: Length of the Fourier transform, in samples.
        hop: Samples from one frame to the next.
        window: Length of the Hann window, in samples, centred in the transform.
        bands: Number of mel bands: triangular filters of equal area on Slaney's scale.
        fmin: Lower end of the lowest band, in Hz.
        fmax: Upper end of the highest band, in Hz.
        power: Exponent of the magnitudes: 1 for amplitudes, 2 for energies.
        padding: Alignment of frames. "same" centres frame i on samples i·hop … (i+1)·hop - 1; "centre" centres it on
            sample i·hop, like librosa's ``center=True``, without the frame after the last sample. Both pad the
            waveform by reflection.
        log_base: Base of the logarithm, "e" or "10".
        floor: Lower clamp of the values before the logarithm.
    """

    sample_rate: int = 22_050
    n_fft: int = 1024
    hop: int = 256
    window: int = 1024
    bands: int = 80
    fmin: float = 0.0
    fmax: float = 8000.0
    power: float = 1.0
    padding: Literal["same", "centre"] = "same"
    log_base: Literal["e", "10"] = "e"
    floor: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("sample_rate", "n_fft", "hop", "window", "bands", "power", "floor"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}: give a number above 0.")
        if not self.hop <= self.window <= self.n_fft:
            raise UserError(
                f"hop {self.hop}, window {self.window} and n_fft {self.n_fft} do not fit: the hop must be at most "
                "the window, and the window at most n_fft."
            )
        if self.padding == "same" and (self.n_fft - self.hop) % 2:
            raise UserError(f"n_fft {self.n_fft} - hop {self.hop} is odd: make it even, or set padding to centre.")
        if not 0 <= self.fmin < self.fmax <= self.sample_rate / 2:
            raise UserError(
                f"fmin {self.fmin:g} and fmax {self.fmax:g} must be increasing and between 0 and half the sample rate, "
                f"{self.sample_rate / 2:g} Hz."
            )
        for name, known in (("padding", ("same", "centre")), ("log_base", ("e", "10"))):
            if getattr(self, name) not in known:
                raise UserError(f"{name} is {getattr(self, name)!r}: give {' or '.join(known)}.")

    @property
    def margin(self) -> tuple[int, int]:
        """Samples before and after a frame's hop that the frame depends on."""
        if self.padding == "same":
            return (self.n_fft - self.hop) // 2, (self.n_fft - self.hop) // 2
        return self.n_fft // 2, max(self.n_fft - self.n_fft // 2 - self.hop, 0)

    @property
    def shortest(self) -> int:
        """Minimal length of a waveform in samples: one window, and more than the reflected padding."""
        return max(self.window, max(self.margin) + 1)

    @property
    def silence(self) -> float:
        """Log-mel value of silence."""
        import math

        return math.log(self.floor, math.e if self.log_base == "e" else 10)

    def frames(self, samples: int) -> int:
        """Number of frames of a waveform, ⌈samples / hop⌉."""
        return -(-samples // self.hop)

    def check_mel(self, mel: Tensor, name: str = "the mel spectrogram") -> None:
        """Check shape, type and range of a mel spectrogram with these settings.

        Args:
            mel: Log-mel values, finite floats (…, bands, frames).
            name: Name of the spectrogram in the error message, such as its file.

        Raises:
            UserError: The tensor cannot be a mel spectrogram with these settings.
        """
        if mel.ndim < 2 or mel.shape[-2] != self.bands:
            transposed = mel.ndim >= 2 and mel.shape[-1] == self.bands
            bands = mel.shape[-2] if mel.ndim >= 2 else "no"
            remedy = "transpose it, frames come last" if transposed else "compute it with the model's settings"
            raise UserError(f"{name} has {bands} bands, the model {self.bands}: {remedy} (shape {tuple(mel.shape)}).")
        if not mel.shape[-1]:
            raise UserError(f"{name} has no frames: give at least one.")
        if not mel.is_floating_point() or not mel.isfinite().all():
            raise UserError(f"{name} has values that are not finite floats: compute it again.")
        self._check_range(float(mel.min()), float(mel.max()), name)

    def _check_range(self, lowest: float, highest: float, name: str) -> None:
        import math

        base = math.e if self.log_base == "e" else 10.0
        # The magnitudes of a waveform in [-1, 1] are at most the sum of the window; the mel filters only reduce them.
        least, most = math.log(self.floor, base), self.power * math.log(self.window, base)
        if lowest < least - 0.1 or highest > most + 0.1:
            likely = "decibels" if lowest < 3 * least or lowest < -30 else "another logarithm, floor or scale"
            raise UserError(
                f"{name} has values from {lowest:.3g} to {highest:.3g}, outside of the model's range of {least:.3g} to "
                f"{most:.3g}: it looks like {likely}; give the log to base {self.log_base} of magnitudes to the power "
                f"{self.power:g}, clamped at {self.floor:g}."
            )


@dataclass(frozen=True)
class Condition:
    """Mel spectrograms and speakers of a batch of waveforms.

    Attributes:
        mel: Log-mel spectrograms, (batch, bands, frames); None for a model without mel spectrograms.
        speaker: Index of each speaker, int64 (batch,); None for a model without speakers.
    """

    mel: Float[Tensor, "batch bands frames"] | None = None
    speaker: Int[Tensor, " batch"] | None = None

    def keywords(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Return the conditions that are not None, on a device, as keyword arguments of `SpeechFlow.log_prob`."""
        parts = {"mel": self.mel, "speaker": self.speaker}
        return {name: part.to(device) for name, part in parts.items() if part is not None}


def log_mel(waveform: Float[Tensor, "batch samples"], spec: MelSpec) -> Float[Tensor, "batch bands frames"]:
    """Compute the log-mel spectrogram of waveforms.

    The waveform is padded with zeros to a whole number of hops, so that every sample has a frame.

    >>> import torch
    >>> log_mel(torch.zeros(1, 5000), MelSpec()).shape
    torch.Size([1, 80, 20])

    Args:
        waveform: Floats in [-1, 1], at ``spec.sample_rate``.
        spec: Settings of the spectrogram.

    Returns:
        float64 for a float64 waveform, otherwise float32.

    Raises:
        UserError: The waveform is shorter than ``spec.shortest``.
    """
    import torch
    from torch.nn import functional as F

    from arflows.core.runtime.machine import double

    samples = waveform.shape[-1]
    if samples < spec.shortest:
        raise UserError(f"a waveform of {samples} samples is too short: the mel settings need {spec.shortest}.")
    dtype = torch.float64 if waveform.dtype == torch.float64 else torch.float32
    device = waveform.device
    with torch.autocast(device.type, enabled=False):
        # A float32 transform has rounding errors of 1e-7 of the loudest frequency, visible in the quiet ones.
        waveform = double(waveform)
        waveform = F.pad(waveform, (0, spec.frames(samples) * spec.hop - samples))
        waveform = F.pad(waveform[:, None], spec.margin, mode="reflect")[:, 0]
        window = torch.hann_window(spec.window, dtype=waveform.dtype, device=waveform.device)
        spectrum = torch.stft(
            waveform, spec.n_fft, spec.hop, spec.window, window, center=False, return_complex=True
        ).abs()
        if spec.power != 1:
            spectrum = spectrum**spec.power
        mel = (_filters(spec).to(spectrum) @ spectrum).clamp(min=spec.floor)
        return (mel.log() if spec.log_base == "e" else mel.log10()).to(dtype).to(device)


@functools.lru_cache(maxsize=8)
def _filters(spec: MelSpec) -> Float[Tensor, "bands frequencies"]:
    """Return the mel filter bank, float64."""
    import librosa
    import numpy as np
    import torch

    return torch.from_numpy(
        librosa.filters.mel(
            sr=spec.sample_rate,
            n_fft=spec.n_fft,
            n_mels=spec.bands,
            fmin=spec.fmin,
            fmax=spec.fmax,
            dtype=np.float64,
        )
    )
