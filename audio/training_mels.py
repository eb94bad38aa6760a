"""Statistics of the mel spectrograms that a flow was trained on, and mel spectrograms that differ from them."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from arflows.audio.representation import MelSpec
from arflows.core.bijections import InitializedFromData
from arflows.core.runtime.errors import UserError

LEAST_FRAMES = 8
"""Frames below which the level and the spectrum of speech say nothing of the settings."""


class TrainingMels(InitializedFromData):
    """Mean, spread and range of each mel band over training data, by which mels of other settings are recognised.

    Settings that change the scale leave a mel spectrogram within the range of the right ones: its common logarithm
    instead of the natural one, no logarithm, normalisation to zero mean and unit variance. These change the level, the
    contrast (the standard deviation over bands and frames) and the mean spectrum in ways that neither volume, nor
    noise, nor another speaker does.

    Args:
        spec: settings of the mel spectrograms.

    Attributes:
        mean: mean of each band, (bands,).
        spread: standard deviation of each band, (bands,); zeros if nothing is known, as of models that were saved by
            versions of arflows that did not keep these statistics.
        lowest: smallest value of each band, (bands,).
        highest: largest value of each band, (bands,).
    """

    mean: Tensor
    spread: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, spec: MelSpec) -> None:
        super().__init__()
        self.spec = spec
        for name in ("mean", "spread", "lowest", "highest"):
            self.register_buffer(name, torch.zeros(spec.bands))

    def _set_from(self, mel: Float[Tensor, "batch bands frames"]) -> None:
        self.mean.copy_(mel.mean((0, 2)))
        self.spread.copy_(mel.std((0, 2), correction=0))
        self.lowest.copy_(mel.amin((0, 2)))
        self.highest.copy_(mel.amax((0, 2)))

    def check(self, mel: Float[Tensor, "batch bands frames"], name: str = "the mel spectrogram") -> None:
        """Refuse a mel spectrogram of other settings; any is accepted if nothing is known of the training data.

        Args:
            mel: log-mel values.
            name: what the sentence calls it, such as the file it came from.

        Raises:
            UserError: if it cannot be a mel spectrogram of these settings, or looks like one of others; the sentence
                names the likely difference.
        """
        if not self.spread.any():
            return
        self.spec.check_mel(mel, name)
        if mel.shape[0] * mel.shape[2] < LEAST_FRAMES:
            return
        if likely := self._difference(mel.detach().double().cpu()):
            raise UserError(
                f"{name} looks like {likely}: its values are {float(mel.mean()):.3g} ± {float(mel.std()):.2g}, the "
                f"training data's {float(self.mean.mean()):.3g} ± {self._contrast():.2g}; give the log to base "
                f"{self.spec.log_base} of magnitudes to the power {self.spec.power:g}, clamped at {self.spec.floor:g}"
            )

    def _contrast(self) -> float:
        """Standard deviation of the training data over bands and frames."""
        return math.sqrt(float(self.spread.square().mean()) + float(self.mean.var(correction=0)))

    def _difference(self, mel: Float[Tensor, "batch bands frames"]) -> str | None:
        """Name what a mel spectrogram looks like, if it is not one of these settings."""
        usual, usual_contrast = float(self.mean.mean()), self._contrast()
        level, contrast = float(mel.mean()), float(mel.std(correction=0))
        if float(mel.min()) >= 0 > usual:
            return "magnitudes without their logarithm"
        far = abs(level - usual) > usual_contrast
        if far and abs(level) < 0.7 and 0.6 < contrast < min(1.4, 0.8 * usual_contrast):
            return "a spectrogram normalised to zero mean and unit variance"
        # A common logarithm is the natural one times 0.43, in level and contrast; noise lacks the mean spectrum.
        spectrum = mel.mean((0, 2))
        alike = float(torch.corrcoef(torch.stack([spectrum, self.mean.double().cpu()]))[0, 1])
        factor = math.log(10)
        near = abs(factor * level - usual) < min(abs(level - usual), usual_contrast)
        if self.spec.log_base == "e" and alike > 0.5 and near and contrast < 0.6 * usual_contrast:
            return "the common logarithm (log10) where the natural one is expected"
        return None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for name, value in self.state_dict().items():  # older files lack them
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
