"""Generation by a `PredictiveFlow`, frame by frame as the mel spectrogram arrives or from a whole one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arflows.audio.pitch import lags
from arflows.audio.predictive_conditions import Conditions, ConditionStream
from arflows.audio.predictive_loops import Memory, Settings, Weights, generate
from arflows.audio.predictive_network import PERIOD_TAPS, RECENT
from arflows.core.bijections import johnson
from arflows.core.bijections.johnson import JohnsonSU
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.numba_loops import multiplying

if TYPE_CHECKING:
    from arflows.audio.predictive import PredictiveFlow

BLOCK = 4
"""Frames that are generated at once."""
VOICED = (0.25, 0.5)
"""Up to which periodicity speech counts as unvoiced, and from which as voiced; between, temperatures are mixed."""


class Part(NamedTuple):
    """A piece of generated speech.

    Attributes:
        waveform: its samples.
        log_density: of each sample given those before it, at temperature 1, in nats.
    """

    waveform: Float[Tensor, "batch samples"]
    log_density: Float[Tensor, "batch samples"]


class Synthesis:
    """Speech in the making: what is still needed of the mel spectrogram, and what the next sample depends on.

    The waveform is the same, bit by bit, however the mel spectrogram is cut into pieces; see `ConditionStream`.

    Args:
        flow: the model.
        batch: how many waveforms.
        speaker: number of the speaker of each.
        temperature: multiplies the latents' standard deviation; or that of voiced and that of unvoiced speech.
        latents: gives the latents of the samples from a first one to before a last one, at temperature 1.
    """

    def __init__(
        self,
        flow: PredictiveFlow,
        batch: int,
        speaker: Tensor | None,
        temperature: float | tuple[float, float],
        latents: Callable[[int, int], Float[Tensor, "batch samples"]],
    ) -> None:
        pair = (temperature, temperature) if isinstance(temperature, int | float) else tuple(temperature)
        if len(pair) != 2 or not all(value > 0 for value in pair):
            raise UserError(f"temperature must be greater than 0, or two such numbers, got {temperature}")
        self.flow, self.batch, self.latents, self.temperatures = flow, batch, latents, pair
        self.conditions = ConditionStream(flow, batch, speaker, BLOCK)
        self.weights, self.settings = _weights(flow), _settings(flow)
        history = max(lags(flow.spec)[1] + flow.ahead, flow.order, RECENT, 2 * flow.chunk)
        stack = flow.trunk.stack
        shape = history, len(stack.dilations), max(stack.dilations), stack.channels, self.weights.enter.dtype
        self.memories = [Memory.empty(*shape) for _ in range(batch)]
        self.done = 0  # frames

    def take(self, mel: Float[Tensor, "batch bands frames"]) -> None:
        """Adds frames."""
        self.conditions.take(mel)

    @torch.no_grad()
    def ready(self, ended: bool) -> Iterator[Part]:
        """Generates what the frames so far allow; all that is left when they have ended."""
        hop = self.flow.spec.hop
        for frames, conditions in self.conditions.ready(ended):
            z = self.latents(self.done * hop, (self.done + frames) * hop).to(self.flow.mean_mel)
            z = F.pad(z * self._temperature(conditions)[:, : z.shape[1]], (0, (BLOCK - frames) * hop))
            part = self._run(z, conditions)
            self.done += frames
            yield Part(*(values[:, : frames * hop] for values in part))

    def _temperature(self, conditions: Conditions) -> Float[Tensor, "batch samples"]:
        voiced, unvoiced = self.temperatures
        low, high = VOICED
        share = ((conditions.periodicity - low) / (high - low)).clamp(0, 1)
        mixed = unvoiced + (voiced - unvoiced) * share
        return mixed.to(self.flow.mean_mel.dtype).repeat_interleave(self.flow.subframe, 1)

    def _run(self, z: Tensor, conditions: Conditions) -> Part:
        flow, kind = self.flow, self.weights.enter.dtype
        added = flow.trunk.stack.added(F.silu(conditions.features).transpose(0, 1)).transpose(1, 2)
        added = added.transpose(0, 1).contiguous().cpu().numpy()  # (batch, layers, sub-frames, gates)
        latent = np.ascontiguousarray(z.cpu().numpy())
        coefficients, gain, level = (part.cpu().numpy() for part in conditions.filters)
        lag = conditions.lag.cpu().numpy()
        x, log_derivative = np.zeros(latent.shape, kind), np.zeros(latent.shape, kind)
        with multiplying():
            for example in range(self.batch):
                generate(
                    self.done * flow.spec.hop, latent[example], coefficients[example], gain[example], level[example],
                    lag[example], added[example], self.weights, self.memories[example], self.settings, x[example],
                    log_derivative[example],
                )  # fmt: skip
        log_density = -0.5 * (latent.astype(np.float64) ** 2 + math.log(2 * math.pi)) - log_derivative
        return Part(torch.from_numpy(x).to(z), torch.from_numpy(log_density).to(z))


def _weights(flow: PredictiveFlow) -> Weights:
    """The weights as the loop wants them."""

    def array(tensor: Tensor) -> np.ndarray:
        return np.ascontiguousarray(tensor.detach().cpu().numpy())

    trunk, stack, head = flow.trunk, flow.trunk.stack, flow.head
    return Weights(
        array(trunk.enter.weight.mT), array(trunk.enter.bias), array(stack.past), array(stack.present),
        array(stack.residual), array(stack.residual_bias), array(trunk.leave.weight.mT), array(trunk.leave.bias),
        array(head.past.weight.mT), array(head.hidden.weight.mT), array(head.hidden.bias), array(head.out.weight.mT),
        array(head.out.bias), array(head.direct.weight.mT), np.array(stack.dilations, np.int64),
    )  # fmt: skip


def _settings(flow: PredictiveFlow) -> Settings:
    return Settings(
        flow.chunk, flow.subframe, flow.per_frame, RECENT, PERIOD_TAPS if flow.pitch else 0,
        isinstance(flow.elementwise, JohnsonSU), johnson.LIGHTEST, johnson.HEAVIEST, johnson.MOST_SKEWED,
        float(flow.elementwise.bound),
    )  # fmt: skip
