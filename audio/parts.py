"""Interfaces of bijections over samples, and of synthesis part by part."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor

from arflows.audio.representation import Condition


class SampleBijection(Protocol):
    """A bijection between waveforms and latents, (batch, samples) both, with a triangular Jacobian."""

    def transform(
        self, x: Float[Tensor, "batch samples"], context: Any = None
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, "batch samples"]]:
        """Waveform → latents, and the log-derivative of each sample's map."""

    def inverse(
        self, z: Float[Tensor, "batch samples"], context: Any = None
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, " batch"]]:
        """Latents → waveform, and the log-determinant of this direction."""


class Window(NamedTuple):
    """A part of a waveform that a flow can be applied to by itself.

    Attributes:
        first: First sample.
        last: The sample after the last.
        context: Context of these samples, as the bijection takes it.
    """

    first: int
    last: int
    context: Any


class Continuation(Protocol):
    """Synthesis of a waveform part by part; each part goes on exactly where the one before ended."""

    def known(self, frames: int, ended: bool) -> int:
        """Number of samples that the first so many mel frames determine, all of them if none follow."""

    def needed(self, sample: int) -> int:
        """The first mel frame that samples from this one on depend on."""

    def extend(
        self, z: Float[Tensor, "batch samples"], condition: Condition, first: int
    ) -> Float[Tensor, "batch samples"]:
        """Synthesises the samples that follow.

        Args:
            z: their latents.
            condition: the speaker, and the mel frames from frame ``first`` on.
            first: a multiple of `SpeechFlow.frame_step`.
        """
