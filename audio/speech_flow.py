"""What all flows over waveforms have in common: their conditions, and what may be asked of them."""

from __future__ import annotations

import importlib

import torch
from jaxtyping import Float
from torch import Tensor

from arflows.audio.representation import Condition, MelSpec
from arflows.core.flow import Flow
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.pretrained import Pretrained, load_model


class SpeechFlow(Flow, Pretrained):
    """A flow over waveforms in [−1, 1], given mel spectrograms and speakers or not.

    Attributes:
        spec: settings of the mel spectrograms.
        conditional: whether mel spectrograms are given.
        speakers: number of speakers that are told apart; 0 for none.
        period: samples after which a sample's role in the model comes again: tones at multiples of rate / period are
            its artefact.
        lead: frames before a training segment that are context alone.
        surroundings: frames of the mel spectrogram beyond both ends that a training segment comes with.
    """

    spec: MelSpec
    conditional: bool
    speakers: int
    period: int
    lead: int = 0
    surroundings: int = 0

    def _check(self, condition: Condition, batch: int, samples: int, lengths: Tensor | None) -> None:
        mel, speaker = condition.mel, condition.speaker
        if not samples:
            raise UserError("a waveform without samples has no density: leave it out")
        if lengths is not None and lengths.shape != (batch,):
            raise UserError(f"expected the lengths of {batch} waveforms, got {tuple(lengths.shape)}")
        # Values are not looked at while they are traced.
        if (
            lengths is not None
            and not torch.compiler.is_compiling()
            and not 1 <= lengths.min() <= lengths.max() <= samples
        ):
            raise UserError(
                f"lengths must lie between 1 and the {samples} samples of the batch, got {lengths.tolist()}"
            )
        for name, part, wanted in (("mel", mel, self.conditional), ("speaker", speaker, self.speakers > 0)):
            if (part is not None) != wanted:
                which = "is conditional on" if wanted else "was trained without"
                raise UserError(f"this model {which} {name}: {'give it' if wanted else 'leave it out'}")
            if part is not None and len(part) not in (1, batch):
                raise UserError(f"expected {name} of each of {batch} waveforms, got {len(part)}")
        if mel is not None and (mel.shape[1] != self.spec.bands or mel.shape[-1] not in self._frame_counts(samples)):
            raise UserError(
                f"the mel spectrogram of {samples} samples has {self.spec.bands} bands and {self.spec.frames(samples)} "
                f"frames, got {mel.shape[1]} and {mel.shape[-1]}: compute it with the model's settings"
            )

    def _within(self, values: Float[Tensor, "batch samples"], lengths: Tensor | None) -> Float[Tensor, "batch samples"]:
        """Zeros in place of what lies after a waveform's end."""
        if lengths is None:
            return values
        return values * (torch.arange(values.shape[1], device=values.device) < lengths.to(values.device)[:, None])

    def _frame_counts(self, samples: int) -> tuple[int, ...]:
        """How many frames of a mel spectrogram may come with so many samples."""
        frames = self.spec.frames(samples)
        return frames, frames + 2 * self.surroundings


def load_speech_flow(model: str, device: str = "auto") -> SpeechFlow:
    """Loads a trained flow of speech of any class, ready to use; see `load_model`."""
    importlib.import_module("arflows.audio.model")  # by which the classes are known
    importlib.import_module("arflows.audio.predictive")
    return load_model(SpeechFlow, model, device)  # type: ignore[type-abstract]
