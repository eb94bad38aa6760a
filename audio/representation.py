"""What speech is to a model: samples in [-1, 1], and the mel spectrogram that conditions them, with its settings."""

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
    """The settings of waveform and mel spectrogram that data and model must share.

    The defaults are those of most vocoders trained on LJSpeech.

    Attributes:
        sample_rate: Samples a second.
        n_fft: Length of the Fourier transform, in samples.
        hop: Samples from one frame to the next.
        window: Length of the Hann window, in samples, in the middle of the transform.
        bands: Bands of the mel filter bank, of triangles of equal area on Slaney's scale.
        fmin: Lower end of the lowest band, in Hz.
        fmax: Upper end of the highest band, in Hz.
        power: Of the spectrum's magnitudes: 1 for amplitudes, 2 for energies.
        padding: Where frames lie. "same" puts frame i around the middle of samples i·hop … (i+1)·hop - 1; "centre"
            puts it around sample i·hop, as librosa's ``center=True`` does, without the frame after the last sample.
            Both continue the waveform beyond its ends by reflection.
        log_base: "e" or "10".
        floor: Smaller values are raised to it before the logarithm.
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
                f"hop {self.hop}, window {self.window} and n_fft {self.n_fft} do not fit: the hop must be no "
                "longer than the window, and the window no longer than the transform."
            )
        if self.padding == "same" and (self.n_fft - self.hop) % 2:
            raise UserError(f"n_fft {self.n_fft} - hop {self.hop} is odd: make it even, or set padding to centre.")
        if not 0 <= self.fmin < self.fmax <= self.sample_rate / 2:
            raise UserError(
                f"fmin {self.fmin:g} and fmax {self.fmax:g} must be in order between 0 and half the sample rate, "
                f"{self.sample_rate / 2:g} Hz."
            )
        for name, known in (("padding", ("same", "centre")), ("log_base", ("e", "10"))):
            if getattr(self, name) not in known:
                raise UserError(f"{name} is {getattr(self, name)!r}: give {' or '.join(known)}.")

    @property
    def margin(self) -> tuple[int, int]:
        """Samples before the first and after the last sample of a frame's hop that the frame depends on."""
        if self.padding == "same":
            return (self.n_fft - self.hop) // 2, (self.n_fft - self.hop) // 2
        return self.n_fft // 2, max(self.n_fft - self.n_fft // 2 - self.hop, 0)

    @property
    def shortest(self) -> int:
        """The fewest samples that have a mel spectrogram: one window, and more than is reflected."""
        return max(self.window, max(self.margin) + 1)

    @property
    def silence(self) -> float:
        """The log-mel value of silence."""
        import math

        return math.log(self.floor, math.e if self.log_base == "e" else 10)

    def frames(self, samples: int) -> int:
        """Frames of a waveform: one for each hop that has begun."""
        return -(-samples // self.hop)

    def check_mel(self, mel: Tensor, name: str = "the mel spectrogram") -> None:
        """Make sure that a tensor can be a mel spectrogram of this kind: finite floats (…, bands, frames), no decibels.

        Args:
            mel: Log-mel values.
            name: What the sentence calls it, such as the file it came from.

        Raises:
            UserError: It cannot; the sentence names what differs and how to mend it.
        """
        if mel.ndim < 2 or mel.shape[-2] != self.bands:
            turned = mel.ndim >= 2 and mel.shape[-1] == self.bands
            bands = mel.shape[-2] if mel.ndim >= 2 else "no"
            mend = "turn it, frames come last" if turned else "compute it with the model's settings"
            raise UserError(f"{name} has {bands} bands, the model {self.bands}: {mend} (shape {tuple(mel.shape)}).")
        if not mel.shape[-1]:
            raise UserError(f"{name} has no frames: give one that has some.")
        if not mel.is_floating_point() or not mel.isfinite().all():
            raise UserError(f"{name} holds values that are no finite floats: compute it again.")
        self._check_range(float(mel.min()), float(mel.max()), name)

    def _check_range(self, lowest: float, highest: float, name: str) -> None:
        import math

        base = math.e if self.log_base == "e" else 10.0
        # The spectrum of a waveform in [-1, 1] is at most the sum of its window; the bands' areas only make it smaller.
        least, most = math.log(self.floor, base), self.power * math.log(self.window, base)
        if lowest < least - 0.1 or highest > most + 0.1:
            likely = "decibels" if lowest < 3 * least or lowest < -30 else "another logarithm, floor or scale"
            raise UserError(
                f"{name} runs from {lowest:.3g} to {highest:.3g}, the model's from {least:.3g} to {most:.3g} at most: "
                f"it looks like {likely}; give the log to base {self.log_base} of magnitudes to the power "
                f"{self.power:g}, clamped at {self.floor:g}."
            )


@dataclass(frozen=True)
class Condition:
    """Conditions of a batch of waveforms, as audio passes them on within itself.

    Attributes:
        mel: Log-mel spectrograms, (batch, bands, frames); None for a model without.
        speaker: The number of each speaker, int64 (batch,); None for a model without.
    """

    mel: Float[Tensor, "batch bands frames"] | None = None
    speaker: Int[Tensor, " batch"] | None = None

    def keywords(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """The parts that are there, on a device: keyword arguments of `SpeechFlow.log_prob`."""
        parts = {"mel": self.mel, "speaker": self.speaker}
        return {name: part.to(device) for name, part in parts.items() if part is not None}


def log_mel(waveform: Float[Tensor, "batch samples"], spec: MelSpec) -> Float[Tensor, "batch bands frames"]:
    """Log-mel spectrogram of waveforms in [-1, 1].

    A waveform that ends within a hop is continued by zeros to its end, so that every sample has a frame.

    Args:
        waveform: Floats in [-1, 1], at ``spec.sample_rate``.
        spec: The settings.

    Returns:
        As wide as the waveform: float32, or float64 for a waveform of that type.

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
        # Transforms in float32 round at 1e-7 of the loudest frequency, which shows in the quiet ones.
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
    """The mel filter bank."""
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
