"""Inpainting: samples of a gap in a waveform from the exact conditional density of the flow."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arflows.audio.representation import Condition
from arflows.audio.speech_flow import SpeechFlow
from arflows.core.flow import evaluating
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.machine import double

STEPS = 60
"""Steps of each Markov chain; the step size is adapted in the first half."""
ROUNDS = 3
"""Rounds of encoding and decoding by which the initial gap is fitted to its surroundings."""
ACCEPTED = 0.574
"""Optimal acceptance rate of Langevin proposals; Roberts & Rosenthal 1998."""


@torch.no_grad()
def inpaint(
    flow: SpeechFlow,
    waveform: Float[Tensor, "1 samples"],
    start: int,
    stop: int,
    *,
    mel: Float[Tensor, "1 bands frames"] | None = None,
    speaker: Int[Tensor, " 1"] | None = None,
    count: int = 1,
    temperature: float = 1.0,
    steps: int = STEPS,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "count samples"], Float[Tensor, " count"]]:
    """Sample a gap of a waveform given all other samples.

    The target is p(gap | other samples, condition)^(1/temperature²), which is proportional to the exact density of the
    whole waveform. Each draw is the last state of a Markov chain of its own that leaves the target invariant: the
    Metropolis-adjusted Langevin algorithm (Roberts & Tweedie 1996; Roberts & Rosenthal 1998), with proposals

        gap' ~ N(gap + ½ ε² D ∇log p, ε² D),

    accepted or rejected by the exact density. D is diagonal and fixed: the variance that the model gives each sample
    in the chain's initial state. ε is adapted in the first half of the steps and fixed in the second. The gradient is
    computed on the gap and the receptive field of one network around it: proposals are cheaper and remain valid.

    The initial state comes from the model's own synthesis: latents of the gap are drawn, the known samples are encoded,
    all latents are decoded, and the known samples are restored. This is repeated a few times.

    The result is a sample of the target in the limit of many steps. With few steps it is biased towards the initial
    state, more so for a longer gap.

    Args:
        flow: the model.
        waveform: samples in [−1, 1].
        start: first sample of the gap.
        stop: first sample after the gap.
        mel: log-mel spectrogram of the whole waveform, including the gap.
        speaker: index of the speaker.
        count: number of draws.
        temperature: temperature of the target; values below 1 give likelier draws.
        steps: steps of each chain.
        generator: random generator, on the CPU.

    Returns:
        Waveforms that differ in the gap only, and the log-density of each whole waveform in nats, at temperature 1.

    Raises:
        UserError: if the gap does not lie in the waveform, or a setting is out of range.
    """
    samples = waveform.shape[1]
    if len(waveform) != 1 or not 0 <= start < stop <= samples:
        raise UserError(
            f"the gap from sample {start} to {stop} does not lie in one waveform of {samples} samples (got "
            f"{len(waveform)} waveforms): give 0 ≤ start < stop ≤ {samples} and a single waveform"
        )
    if count < 1 or steps < 0:
        raise UserError(f"count={count} and steps={steps} must be at least 1 and 0")
    if not temperature > 0:
        raise UserError(f"temperature must be greater than 0, got {temperature}")
    with evaluating(flow):
        context = flow.context(waveform, Condition(mel, speaker))
        chains = []
        for _ in range(count):
            chain = _Chain(flow, waveform, start, stop, context, temperature, generator)
            chains.append(chain.run(steps))
        filled = torch.cat(chains)
        return filled, torch.cat([flow.log_prob(one, mel=mel, speaker=speaker) for one in filled.split(1)])


class _Chain:
    """Markov chain of one draw: a waveform of which only the gap changes."""

    def __init__(
        self,
        flow: SpeechFlow,
        waveform: Tensor,
        start: int,
        stop: int,
        context: Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
    ) -> None:
        self.bijection, self.start, self.stop = flow.bijection, start, stop
        self.temperature, self.generator = temperature, generator
        self.known = waveform.to(flow.device, flow.dtype)
        self.exact, self.narrow = flow.windows(start, stop, waveform.shape[1], context)

    def run(self, steps: int) -> Float[Tensor, "1 samples"]:
        """Return the waveform after the given number of steps."""
        waveform = self._initial_state()
        scale = self._scale(waveform)
        size, adapted = (self.stop - self.start) ** (-1 / 6), steps // 2
        density, gradient = self._density(waveform), self._gradient(waveform)
        for step in range(steps):
            noise = self._normal(self.stop - self.start)
            forward = waveform[:, self.start : self.stop] + 0.5 * (size * scale) ** 2 * gradient
            proposed = self._with_gap(waveform, forward + size * scale * noise)
            proposed_density, proposed_gradient = self._density(proposed), self._gradient(proposed)
            backward = proposed[:, self.start : self.stop] + 0.5 * (size * scale) ** 2 * proposed_gradient
            back = (waveform[:, self.start : self.stop] - backward) / (size * scale)
            log_ratio = proposed_density - density + 0.5 * float(noise.square().sum() - back.square().sum())
            acceptance = math.exp(min(0.0, log_ratio)) if math.isfinite(log_ratio) else 0.0
            if float(torch.rand((), generator=self.generator)) < acceptance:
                waveform, density, gradient = proposed, proposed_density, proposed_gradient
            if step < adapted:  # Robbins & Monro 1951
                size *= math.exp((acceptance - ACCEPTED) * 2 / math.sqrt(1 + step))
        return waveform

    def _initial_state(self) -> Tensor:
        waveform, gap = self.known, self.temperature * self._normal(self.stop - self.start)
        first, last, context = self.exact
        for _ in range(ROUNDS):
            piece = waveform[:, first:last]
            z = self.bijection.transform(piece, context)[0]
            z[:, self.start - first : self.stop - first] = gap
            decoded = self.bijection.inverse(z, context)[0]
            waveform = self._with_gap(waveform, decoded[:, self.start - first : self.stop - first])
        return waveform

    def _scale(self, waveform: Tensor) -> Tensor:
        """Return the standard deviation of each sample of the gap given the samples generated before it."""
        first, last, context = self.exact
        _, log_derivative = self.bijection.transform(waveform[:, first:last], context)
        return self.temperature * (-log_derivative[:, self.start - first : self.stop - first]).exp()

    def _density(self, waveform: Tensor) -> float:
        """Return the log of the target density, up to a constant."""
        first, last, context = self.exact
        return float(self._log_target(waveform[:, first:last], context))

    def _gradient(self, waveform: Tensor) -> Tensor:
        first, last, context = self.narrow
        with torch.enable_grad():
            gap = waveform[:, self.start : self.stop].clone().requires_grad_()
            piece = torch.cat([waveform[:, first : self.start], gap, waveform[:, self.stop : last]], 1)
            (gradient,) = torch.autograd.grad(self._log_target(piece, context), gap)
        return gradient

    def _log_target(self, piece: Tensor, context: Tensor | None) -> Tensor:
        z, log_derivative = self.bijection.transform(piece, context)
        # In double precision, because acceptance depends on small differences of sums over many samples.
        return (double(log_derivative) - 0.5 * double(z).square()).sum() / self.temperature**2

    def _with_gap(self, waveform: Tensor, gap: Tensor) -> Tensor:
        return torch.cat([waveform[:, : self.start], gap, waveform[:, self.stop :]], 1)

    def _normal(self, size: int) -> Tensor:
        drawn = torch.randn(1, size, generator=self.generator, dtype=self.known.dtype)
        return drawn.to(self.known.device)
