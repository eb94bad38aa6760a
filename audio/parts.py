"""Interfaces of bijections over samples, and of synthesis part by part."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor

from arflows.audio.representation import Condition


class SampleBijection(Protocol):
    """Bijection between waveforms and latents, both (batch, samples), with a triangular Jacobian."""

    def transform(
        self, x: Float[Tensor, "batch samples"], context: Any = None
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, "batch samples"]]:
        """Map waveforms to latents, and return the log-derivative of each sample's map."""

    def inverse(
        self, z: Float[Tensor, "batch samples"], context: Any = None
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, " batch"]]:
        """Map latents to waveforms, and return the log-determinant of this direction."""


class Window(NamedTuple):
    """Part of a waveform that a flow can be applied to separately.

    Attributes:
        first: First sample.
        last: Sample after the last.
        context: Context of these samples for the bijection.
    """

    first: int
    last: int
    context: Any


class Continuation(Protocol):
    """Incremental exact synthesis of a waveform; each part continues the one before."""

    def known(self, frames: int, ended: bool) -> int:
        """Return the number of samples that the first ``frames`` mel frames determine; all if ``ended``."""

    def needed(self, sample: int) -> int:
        """Return the first mel frame that this sample and later ones depend on."""

    def extend(
        self, z: Float[Tensor, "batch samples"], condition: Condition, first: int
    ) -> Float[Tensor, "batch samples"]:
        """Synthesise the next samples.

        Args:
            z: latents of the samples.
            condition: speaker, and mel frames from frame ``first`` on.
            first: index of the first mel frame, a multiple of `SpeechFlow.frame_step`.
        """
