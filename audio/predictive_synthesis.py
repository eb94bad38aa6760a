"""Synthesis by `PredictiveFlow`, from a whole mel spectrogram or frame by frame as it arrives."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arflows.audio.pitch import lags
from arflows.audio.predictive_conditions import AHEAD, ConditionModel, Conditions, ConditionStream
from arflows.audio.predictive_loops import Memory, Settings, Weights, generate
from arflows.audio.predictive_network import PERIOD_TAPS, RECENT, Head, Trunk
from arflows.audio.representation import Condition
from arflows.core.bijections import johnson
from arflows.core.bijections.elementwise import Elementwise
from arflows.core.bijections.johnson import JohnsonSU
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.threads import multiplying

BLOCK = 4
"""Frames whose conditions are computed at once in streaming."""
PIECE = 32
"""Frames whose contributions to the layers are held in memory at once."""
VOICED = (0.25, 0.5)
"""Periodicity up to which speech is unvoiced, and from which it is voiced; temperatures are mixed in between."""


class SynthesisModel(ConditionModel, Protocol):
    """Parts of a `PredictiveFlow` that generate samples; its attributes have the same names."""

    chunk: int
    subframe: int
    ahead: int
    pitch: bool
    trunk: Trunk
    head: Head
    elementwise: Elementwise

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the model computes."""


class SampleBySample:
    """Incremental synthesis by a `PredictiveFlow`; see `Continuation`.

    The waveform is bitwise independent of how the mel spectrogram is cut into pieces; see `ConditionStream`.

    Args:
        flow: the model.
    """

    def __init__(self, flow: SynthesisModel) -> None:
        self.flow = flow
        self.weights, self.settings = _weights(flow), _settings(flow)
        self.memories: list[Memory] = []
        self.stream: ConditionStream | None = None
        self.done = 0  # frames

    def known(self, frames: int, ended: bool) -> int:
        """Return the number of samples, in whole blocks, that depend on the first ``frames`` frames only."""
        whole = max(frames // BLOCK * BLOCK - AHEAD, 0) // BLOCK * BLOCK
        return (frames if ended else whole) * self.flow.spec.hop

    def needed(self, sample: int) -> int:
        """Return the first frame that has not been processed."""
        return 0 if self.stream is None else self.stream.taken

    @torch.no_grad()
    def extend(
        self, z: Float[Tensor, "batch samples"], condition: Condition, first: int
    ) -> Float[Tensor, "batch samples"]:
        """Synthesise the next samples; see `Continuation`."""
        assert condition.mel is not None
        if self.stream is None:
            self.stream = ConditionStream(self.flow, len(z), condition.speaker, BLOCK)
        self.stream.take(condition.mel[:, :, self.stream.taken - first :])
        hop, start, parts = self.flow.spec.hop, 0, []
        ended = self.done * hop + z.shape[1] > self.known(self.stream.taken, ended=False)
        for frames, conditions in self.stream.ready(ended):
            part = z[:, start : start + frames * hop]
            waveform, _ = self.run(F.pad(part, (0, BLOCK * hop - part.shape[1])), conditions)
            parts.append(waveform[:, : part.shape[1]])
            start += frames * hop
        return torch.cat(parts, 1)

    @torch.no_grad()
    def run(
        self, z: Float[Tensor, "batch samples"], conditions: Conditions
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, "batch samples"]]:
        """Map latents to the next samples, and return the log-derivative of each sample's map."""
        flow, (batch, samples) = self.flow, z.shape
        latent = F.pad(z, (0, conditions.features.shape[1] * flow.subframe - samples)).detach().cpu().numpy()
        if not self.memories:
            stack, history = flow.trunk.stack, max(lags(flow.spec)[1] + flow.ahead, flow.order, RECENT, 2 * flow.chunk)
            sizes = history, len(stack.dilations), max(stack.dilations), stack.channels, latent.dtype
            self.memories = [Memory.empty(*sizes) for _ in range(batch)]
        x, log_derivative = np.zeros_like(latent), np.zeros_like(latent)
        frames = len(latent[0]) // flow.spec.hop
        for start in range(0, frames, PIECE):
            self._run(
                latent, conditions.part(start, min(start + PIECE, frames), flow.per_frame), start, x, log_derivative
            )
        self.done += frames
        return tuple(torch.from_numpy(part[:, :samples]).to(z) for part in (x, log_derivative))  # type: ignore[return-value]

    def _run(self, latent: np.ndarray, conditions: Conditions, start: int, x: np.ndarray, out: np.ndarray) -> None:
        """Write the samples of some frames to ``x`` and their log-derivatives to ``out``."""
        flow, hop = self.flow, self.flow.spec.hop
        added = flow.trunk.stack.added(F.silu(conditions.features).transpose(0, 1)).movedim(2, 0)
        gates = added.contiguous().cpu().numpy()  # (batch, layers, sub-frames, gates)
        coefficients, gain, level = (part.cpu().numpy() for part in conditions.filters)
        lag = conditions.lag.cpu().numpy()
        piece = slice(start * hop, start * hop + gain.shape[1] * flow.subframe)
        with multiplying():
            for example, memory in enumerate(self.memories):
                generate(
                    (self.done + start) * hop, latent[example, piece], coefficients[example], gain[example],
                    level[example], lag[example], gates[example], self.weights, memory, self.settings,
                    x[example, piece], out[example, piece],
                )  # fmt: skip


def mixed_temperature(
    flow: SynthesisModel, temperatures: tuple[float, float], conditions: Conditions
) -> Float[Tensor, "batch samples"]:
    """Compute the temperature of each sample from its periodicity.

    Args:
        flow: the model.
        temperatures: temperature of voiced and of unvoiced speech.
        conditions: conditions of the segment.

    Raises:
        UserError: if a temperature is not above 0.
    """
    if len(temperatures) != 2 or not all(value > 0 for value in temperatures):
        raise UserError(f"temperatures must be two numbers greater than 0, got {temperatures}")
    voiced, unvoiced = temperatures
    low, high = VOICED
    share = ((conditions.periodicity - low) / (high - low)).clamp(0, 1)
    mixed = unvoiced + (voiced - unvoiced) * share
    return mixed.to(flow.dtype).repeat_interleave(flow.subframe, 1)


def _weights(flow: SynthesisModel) -> Weights:
    """Return the weights in the layout of the compiled loop."""

    def array(tensor: Tensor) -> np.ndarray:
        return np.ascontiguousarray(tensor.detach().cpu().numpy())

    def halved(tensor: Tensor) -> np.ndarray:
        if tensor.dtype == torch.float32 and torch.equal(tensor.bfloat16().float(), tensor):
            return array(tensor.bfloat16().view(torch.int16)).view(np.uint16)
        return array(tensor)

    trunk, stack, head = flow.trunk, flow.trunk.stack, flow.head
    return Weights(
        array(trunk.input_proj.weight.mT), array(trunk.input_proj.bias), array(stack.past), halved(stack.present),
        halved(stack.residual), array(stack.residual_bias), halved(trunk.output_proj.weight.mT),
        array(trunk.output_proj.bias), array(head.past.weight.mT), array(head.hidden.weight.mT),
        array(head.hidden.bias), array(head.out.weight.mT), array(head.out.bias), array(head.direct.weight.mT),
        np.array(stack.dilations, np.int64),
    )  # fmt: skip


def _settings(flow: SynthesisModel) -> Settings:
    return Settings(
        flow.chunk, flow.subframe, flow.per_frame, RECENT, PERIOD_TAPS if flow.pitch else 0,
        isinstance(flow.elementwise, JohnsonSU), johnson.LIGHTEST, johnson.HEAVIEST, johnson.MOST_SKEWED,
        johnson.LINEAR_FROM, float(flow.elementwise.bound),  # type: ignore[arg-type]
    )  # fmt: skip
