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

from arflows.audio.pitch import LOOK_AHEAD, Pitch, PitchTracker, at_lags, correlations, lags
from arflows.audio.predictive_loops import Memory, Settings, Weights, generate
from arflows.core.bijections import johnson
from arflows.core.bijections.johnson import JohnsonSU
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.numba_loops import multiplying

if TYPE_CHECKING:
    from arflows.audio.predictive import Conditions, PredictiveFlow

BLOCK = 4
"""Frames whose conditions are computed at once, counted from the first frame: so no cut of the stream matters."""
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

    Conditions are computed for `BLOCK` frames at a time, always the same frames, by the same operations on arrays of the
    same sizes. So the waveform is the same, bit by bit, however the mel spectrogram is cut into pieces.

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
        self.speaker = None if speaker is None else speaker.expand(batch).to(flow.device)
        self.weights, self.settings = _weights(flow), _settings(flow)
        self.dtype = flow.mean_mel.dtype
        history = -(-max(lags(flow.spec)[1] + flow.ahead, flow.order, 32) // 64) * 64
        stack = flow.trunk.stack
        shape = history, len(stack.dilations), max(stack.dilations), stack.channels, self.weights.enter.dtype
        self.memories = [Memory.empty(*shape) for _ in range(batch)]
        self.tracker = PitchTracker(batch, flow.spec)
        self.count = 0  # frames taken
        self.done = 0  # frames generated
        # Of the frames from `first` on: those that came, their spectra and correlations, lags as far as they are known.
        self.waiting = self._silence(flow.surroundings)
        self.first = -flow.surroundings
        self.mel = self.waiting[:, :, :0]
        self.log_amplitude = torch.zeros(batch, 0, flow.spec.n_fft // 2 + 1, dtype=torch.float64, device=flow.device)
        self.correlation = self.log_amplitude[:, :, :0]
        self.lag = torch.zeros(batch, 0, dtype=torch.int64)

    def take(self, mel: Float[Tensor, "batch bands frames"]) -> None:
        """Adds frames."""
        self.count += mel.shape[2]
        self.waiting = torch.cat([self.waiting, mel.to(self.flow.device, self.dtype)], 2)

    @torch.no_grad()
    def ready(self, ended: bool) -> Iterator[Part]:
        """Generates what the frames so far allow; all that is left when they have ended."""
        reach = 5
        if ended:
            after = reach + LOOK_AHEAD + 2 * BLOCK
            self.waiting = torch.cat([self.waiting, self._silence(after)], 2)
        while self.waiting.shape[2] >= BLOCK:
            self._look_at(self.waiting[:, :, :BLOCK].contiguous())
            self.waiting = self.waiting[:, :, BLOCK:]
            while self.done < self.count and self.done + BLOCK + reach <= self.first + self.lag.shape[1]:
                yield self._generate(min(BLOCK, self.count - self.done), reach)

    def _look_at(self, mel: Tensor) -> None:
        """What is known of a block of frames by itself, and the lags that it decides."""
        spec = self.flow.spec
        log_amplitude = self.flow.envelope(mel)
        correlation = correlations(log_amplitude, spec)
        lag = self.tracker.track(correlation, ended=False)
        self.mel = torch.cat([self.mel, mel], 2)
        self.log_amplitude = torch.cat([self.log_amplitude, log_amplitude], 1)
        self.correlation = torch.cat([self.correlation.expand(-1, -1, correlation.shape[2]), correlation], 1) if (
            self.correlation.shape[1]
        ) else correlation
        self.lag = torch.cat([self.lag, lag], 1)

    def _generate(self, frames: int, reach: int) -> Part:
        """Generates the next frames."""
        start = self.done - reach - self.first
        window = slice(start, start + BLOCK + 2 * reach)
        found = at_lags(self.correlation[:, window], self.lag[:, window].to(self.correlation.device), self.flow.spec)
        conditions = self.flow.inner_conditions(
            self.mel[:, :, window], self.log_amplitude[:, window], Pitch(*found), self.speaker
        )
        hop = self.flow.spec.hop
        z = self.latents(self.done * hop, (self.done + frames) * hop).to(self.dtype)
        z = F.pad(z * self._temperature(conditions)[:, : z.shape[1]], (0, (BLOCK - frames) * hop))
        part = self._run(z, conditions)
        keep = max(start, 0)
        self.mel, self.lag = self.mel[:, :, keep:], self.lag[:, keep:]
        self.log_amplitude, self.correlation = self.log_amplitude[:, keep:], self.correlation[:, keep:]
        self.first += keep
        self.done += frames
        return Part(*(values[:, : frames * hop] for values in part))

    def _temperature(self, conditions: Conditions) -> Float[Tensor, "batch samples"]:
        voiced, unvoiced = self.temperatures
        low, high = VOICED
        share = ((conditions.periodicity - low) / (high - low)).clamp(0, 1)
        mixed = unvoiced + (voiced - unvoiced) * share
        return mixed.to(self.dtype).repeat_interleave(self.flow.subframe, 1)

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

    def _silence(self, frames: int) -> Float[Tensor, "batch bands frames"]:
        spec = self.flow.spec
        return torch.full(
            (self.batch, spec.bands, frames), spec.silence, dtype=self.dtype, device=self.flow.device
        )


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
    from arflows.audio.predictive import PERIOD_TAPS, RECENT

    return Settings(
        flow.chunk, flow.subframe, flow.per_frame, RECENT, PERIOD_TAPS if flow.pitch else 0,
        isinstance(flow.elementwise, JohnsonSU), johnson.LIGHTEST, johnson.HEAVIEST, johnson.MOST_SKEWED,
        float(flow.elementwise.bound),
    )  # fmt: skip
