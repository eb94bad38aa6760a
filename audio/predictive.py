"""PredictiveFlow: an autoregressive flow over the residual of a linear prediction of speech."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from arflows.audio.linear_prediction import Envelope, predict
from arflows.audio.parts import Window
from arflows.audio.pitch import correlations, lags, track
from arflows.audio.predictive_conditions import (
    REACH,
    SURROUNDINGS,
    Conditions,
    ConditionStream,
    conditions_of,
    known_of,
)
from arflows.audio.predictive_network import PERIOD_TAPS, RECENT, FrameEncoder, Head, Trunk
from arflows.audio.predictive_synthesis import SampleBySample, mixed_temperature
from arflows.audio.presets import PREDICTIVE_PRESETS
from arflows.audio.representation import Condition, MelSpec, log_mel
from arflows.audio.speech_flow import SpeechFlow, Temperature, within
from arflows.core.bijections.elementwise import Elementwise, LocationScale
from arflows.core.bijections.johnson import JohnsonSU
from arflows.core.runtime.errors import UserError

SUBFRAME = 64
"""Maximal number of samples that share a filter."""
WINDOW = 256
"""Frames of a long waveform that are processed at once without gradients."""
DENSITIES: dict[str, type[Elementwise]] = {"normal": LocationScale, "johnson": JohnsonSU}


class PredictiveFlow(SpeechFlow):
    """Autoregressive flow over single samples in [−1, 1], after a linear prediction from the mel spectrogram.

    Sample t is mapped in two steps. Linear prediction gives the excitation

        e_t = (x_t − Σ a_k x_{t−k}) / g,

    as in LPCNet (Valin & Skoglund 2019, arXiv:1810.11846). Its coefficients a and gain g are computed from the mel
    spectrogram without learned parameters (see `arflows.audio.linear_prediction`). An elementwise map then gives the
    latent z_t; two networks compute its parameters from the past. The first network, a stack of gated dilated causal
    layers (van den Oord et al. 2016, arXiv:1609.03499), takes one step per chunk of samples, the second one step per
    sample. Both also see the excitation around one pitch period ago, at a lag tracked in the mel spectrogram. The
    Jacobian is triangular, so `log_prob` is exact; generation takes one step per sample.

    Waveforms are continued by silence. A model without mel spectrograms uses their mean over training data in every
    frame.

    >>> flow = PredictiveFlow(channels=4, dilations=(1, 2), width=4)
    >>> flow.subframe, flow.per_frame  # samples that share a filter, filters per frame
    (64, 4)

    Args:
        spec: settings of the mel spectrograms, as for `MelSpec`; None for its defaults.
        conditional: True if mel spectrograms are given; otherwise only the sample rate of ``spec`` is used.
        speakers: number of speakers; 0 for a model without.
        order: order of the linear prediction.
        chunk: samples per step of the first network; a divisor of the hop. 1 makes it a WaveNet over samples.
        channels: channels of the first network.
        dilations: dilation of each layer of the first network, in chunks.
        width: width of the second network.
        features: number of features of a frame.
        density: conditional density of the excitation: "normal", or "johnson" for `JohnsonSU`, with heavier tails.
        pitch: True if the networks see the excitation one pitch period ago.

    Raises:
        UserError: if the chunk does not fit the hop or the shortest pitch period, or the order is out of range.
    """

    presets = PREDICTIVE_PRESETS
    lead = 2
    surroundings = SURROUNDINGS
    mean_mel: Tensor

    def __init__(
        self,
        spec: Mapping[str, Any] | None = None,
        conditional: bool = True,
        speakers: int = 0,
        order: int = 48,
        chunk: int = 8,
        channels: int = 128,
        dilations: Sequence[int] = (1, 2, 4, 8, 16, 32, 1, 2, 4, 8, 16, 32),
        width: int = 64,
        features: int = 96,
        density: Literal["normal", "johnson"] = "johnson",
        pitch: bool = True,
    ) -> None:
        super().__init__(MelSpec.from_dict(spec or {}), conditional, speakers)
        self.order, self.pitch = order, pitch
        self.chunk = self.height = chunk
        hop = self.spec.hop
        fitting = [size for size in range(chunk, SUBFRAME + 1, chunk) if hop % size == 0] if chunk >= 1 else []
        shortest, _ = lags(self.spec)
        self.ahead = max(PERIOD_TAPS, 2 * chunk) if chunk > 1 else PERIOD_TAPS
        if not fitting or self.ahead > shortest:
            raise UserError(
                f"chunk={chunk} does not fit: it must divide the hop of {hop} samples and be at most "
                f"{min(SUBFRAME, shortest // 2)}"
            )
        if not 1 <= order < hop:
            raise UserError(f"order={order} must lie between 1 and the hop of {hop} samples")
        self.subframe = max(fitting)
        self.per_frame = hop // self.subframe
        self.elementwise = DENSITIES[density]()
        self.envelope = Envelope(self.spec)
        self.encoder = FrameEncoder(self.spec.bands + 4, features, speakers)
        taps = 3 * chunk if pitch else 0
        self.trunk = Trunk(4 * chunk + taps, channels, list(dilations), features, chunk, width)
        taps = 2 * PERIOD_TAPS + 1 if pitch else 0
        self.head = Head(2 * RECENT + taps + 2, width, self.elementwise.parameter_count)
        self.register_buffer("mean_mel", torch.full((self.spec.bands,), self.spec.silence))

    @property
    def bijection(self) -> PredictiveBijection:  # type: ignore[override]  # a property: no submodule, no state
        """Bijection between waveforms and latents, given `Conditions`."""
        return PredictiveBijection(self)

    @property
    def memory(self) -> int:
        """Number of past samples that a sample's parameters depend on."""
        recent = max(2 * self.chunk, RECENT, self.ahead + lags(self.spec)[1])
        return (self.trunk.stack.reach + 1) * self.chunk + recent + self.order

    @torch.no_grad()
    def round_weights(self) -> None:
        """Round the weights of the first network to bfloat16, which halves the memory traffic of synthesis.

        Density and synthesis remain inverse to each other, because both use the rounded weights.
        """
        stack = self.trunk.stack
        for weight in (stack.present, stack.residual, self.trunk.output_proj.weight):
            weight.copy_(weight.bfloat16())

    def _context(
        self, waveform: Float[Tensor, "batch samples"], condition: Condition, lengths: Int[Tensor, " batch"] | None
    ) -> Conditions:
        """Return the conditions of a waveform's sub-frames."""
        batch, samples = waveform.shape
        frames, mel = self.spec.frames(samples), condition.mel
        if mel is None:
            mel = self.mean_mel[None, :, None].expand(1, -1, frames)
        elif not torch.compiler.is_compiling() and not mel.isfinite().all():
            raise UserError("the mel spectrogram has values that are not finite: compute it again")
        surrounded = mel.shape[2] > frames
        if lengths is not None and not surrounded:
            ends = (lengths.to(mel.device) - 1) // self.spec.hop + 1
            mel = torch.where(torch.arange(frames, device=mel.device) < ends[:, None, None], mel, self.spec.silence)
        mel = mel.expand(batch, -1, -1)
        if not surrounded and frames > WINDOW and not torch.is_grad_enabled():
            stream = ConditionStream(self, batch, condition.speaker, WINDOW)
            stream.take(mel)
            whole = Conditions.joined([part for _, part in stream.ready(ended=True)], self.per_frame)
            return whole.part(0, frames, self.per_frame)
        if not surrounded:
            mel = F.pad(mel, (SURROUNDINGS, SURROUNDINGS), value=self.spec.silence)
        return conditions_of(self, mel, condition.speaker)

    def _scaled(
        self, z: Float[Tensor, "batch samples"], temperature: Temperature, condition: Condition
    ) -> Float[Tensor, "batch samples"]:
        """Scale latents by one temperature, or by one for voiced and one for unvoiced speech."""
        if not isinstance(temperature, tuple):
            return super()._scaled(z, temperature, condition)
        with torch.no_grad():
            conditions = self._context(z, condition, None)
        return z * mixed_temperature(self, temperature, conditions)[:, : z.shape[1]]

    def _generate(
        self, z: Float[Tensor, "batch samples"], condition: Condition, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, " batch"]]:
        """Map latents to waveforms, zero after their ends, and return the log-determinant of this direction."""
        with torch.no_grad():
            context = self.context(z, condition, lengths)
        x, log_derivative = SampleBySample(self).run(z, context)
        return within(x, lengths), within(log_derivative, lengths).sum(1)

    def continuation(self) -> SampleBySample:
        """Return synthesis by blocks of frames."""
        return SampleBySample(self)

    def windows(self, start: int, stop: int, samples: int, context: Any) -> tuple[Window, Window]:
        """Return windows of whole frames around a gap; see `SpeechFlow.windows`."""
        hop = self.spec.hop
        margin = -(-self.memory // hop)
        return (
            self._window(start, stop, samples, context, margin, margin),
            self._window(start, stop, samples, context, margin, min(margin, 2)),
        )

    def _window(self, start: int, stop: int, samples: int, context: Conditions, before: int, after: int) -> Window:
        hop = self.spec.hop
        first = max(0, start // hop - before)
        last = min(-(-stop // hop) + after, self.spec.frames(samples))
        return Window(first * hop, min(last * hop, samples), context.part(first, last, self.per_frame))

    @torch.no_grad()
    def initialize(self, x: Float[Tensor, "batch samples"], /, *conditions: Any, **options: Any) -> None:
        """Fit the state that is not learned to segments of training speech, unless it was fitted or loaded before.

        It consists of the levels above the highest mel band, the scales of the networks' inputs, and the mean spectrum.
        """
        if self.training_mels is not None and "mel" in options:
            self.training_mels.initialize_from(options["mel"])
        if self.envelope.initialized:
            return
        self.envelope.initialize_from(x)
        mel = log_mel(x, self.spec)
        self.mean_mel.copy_(mel.mean((0, 2)))
        if not self.conditional:
            mel = self.mean_mel[None, :, None].expand_as(mel)
        log_amplitude = self.envelope(mel)
        known, _ = known_of(self, mel, log_amplitude, track(correlations(log_amplitude, self.spec), self.spec))
        ends = min(REACH, (known.shape[1] - 1) // 2)  # whose inputs reach beyond the segment
        self.encoder.fit(known[:, ends : known.shape[1] - ends].to(self.mean_mel.dtype))


class PredictiveBijection:
    """Bijection of a `PredictiveFlow` between waveforms and latents; the context is `Conditions`."""

    def __init__(self, flow: PredictiveFlow) -> None:
        self.flow = flow

    def transform(
        self, x: Float[Tensor, "batch samples"], context: Any = None
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, "batch samples"]]:
        """Map waveforms to latents, and return the log-derivative of each sample's map.

        Without gradients, long waveforms are mapped in pieces that overlap by the receptive field.
        """
        flow, samples, hop = self.flow, x.shape[1], self.flow.spec.hop
        x = F.pad(x, (0, -samples % hop))
        frames = x.shape[1] // hop
        if torch.is_grad_enabled() or frames <= WINDOW:
            return tuple(part[:, :samples] for part in self._map(x, context))  # type: ignore[return-value]
        before, parts = -(-flow.memory // hop), []
        for start in range(0, frames, WINDOW):
            first, last = max(0, start - before), min(start + WINDOW, frames)
            piece = self._map(x[:, first * hop : last * hop], context.part(first, last, flow.per_frame))
            parts.append([part[:, (start - first) * hop :] for part in piece])
        z, log_derivative = (torch.cat(pieces, 1)[:, :samples] for pieces in zip(*parts, strict=True))
        return z, log_derivative

    def inverse(
        self, z: Float[Tensor, "batch samples"], context: Any = None
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, " batch"]]:
        """Map latents to waveforms by a compiled loop on the CPU, and return the log-determinant of this direction."""
        x, log_derivative = SampleBySample(self.flow).run(z, context)
        return x, log_derivative.sum(1)

    def _map(
        self, x: Float[Tensor, "batch samples"], conditions: Conditions
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, "batch samples"]]:
        """Map whole frames to latents and log-derivatives."""
        coefficients, gain, level = conditions.filters
        log_gain, level = (part.repeat_interleave(self.flow.subframe, 1).to(x.dtype) for part in (gain.log(), level))
        predicted = predict(x, coefficients)
        excitation = (x - predicted) * (-log_gain).exp()
        log_ratio = level.log() - log_gain
        parameters = self._map_parameters(excitation, x / level, predicted / level, log_ratio, conditions)
        z, log_derivative = self.flow.elementwise(excitation, parameters)
        return z, log_derivative - log_gain

    def _map_parameters(
        self, excitation: Tensor, x: Tensor, predicted: Tensor, log_ratio: Tensor, conditions: Conditions
    ) -> Float[Tensor, "batch samples parameters"]:
        """Compute the parameters of every sample's map; ``x`` and ``predicted`` are divided by the level."""
        flow, samples, size = self.flow, excitation.shape[1], self.flow.chunk
        compressed = excitation.asinh()  # limits the influence of large values
        recent = [F.pad(part, (RECENT, 0))[:, :-1].unfold(1, RECENT, 1) for part in (compressed, x)]
        coarse = [F.pad(part, (2 * size, 0)).unfold(1, 2 * size, size)[:, :-1] for part in (compressed, x)]
        if flow.pitch:
            period = self._one_period_ago(compressed, conditions.lag)
            start = flow.ahead - PERIOD_TAPS
            recent.append(period[:, start:].unfold(1, 2 * PERIOD_TAPS + 1, 1)[:, :samples])
            start = flow.ahead - size
            coarse.append(period[:, start:].unfold(1, 3 * size, size)[:, : samples // size])
        state = flow.trunk(torch.cat(coarse, 2), conditions.features)
        return flow.head(torch.cat([*recent, predicted[..., None], log_ratio[..., None]], 2), state)

    def _one_period_ago(
        self, compressed: Float[Tensor, "batch samples"], lag: Int[Tensor, "batch subframes_and_more"]
    ) -> Float[Tensor, "batch samples_and_more"]:
        """Return the excitation one pitch period earlier, for all samples and `ahead` more on both sides."""
        flow, before = self.flow, lags(self.flow.spec)[1] + self.flow.ahead
        times = torch.arange(-flow.ahead, compressed.shape[1] + flow.ahead, device=compressed.device)
        delayed = times - lag[:, times.clamp_min(0) // flow.subframe + flow.per_frame]
        return F.pad(compressed, (before, 0)).gather(1, delayed + before)
