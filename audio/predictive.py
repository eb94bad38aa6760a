"""PredictiveFlow: an autoregressive flow over samples of speech that linear prediction has whitened."""

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
"""Samples that share a filter, at most."""
WINDOW = 256
"""Frames of a longer waveform that are looked at together where no gradient is asked for."""
DENSITIES: dict[str, type[Elementwise]] = {"normal": LocationScale, "johnson": JohnsonSU}


class PredictiveFlow(SpeechFlow):
    """A flow over waveforms in [−1, 1], sample by sample, on top of a linear prediction that knows the mel spectrogram.

    Sample t is mapped in two steps. Linear prediction, whose coefficients a and gain g follow from the mel spectrogram
    without anything learned (see `arflows.audio.linear_prediction`), gives the excitation

        e_t = (x_t − Σ a_k x_{t−k}) / g,

    as in LPCNet (Valin & Skoglund 2019, arXiv:1810.11846). An elementwise map, whose parameters two networks compute
    from what came before, makes of it the latent z_t. The first network, a stack of gated dilated causal layers (van
    den Oord et al. 2016, arXiv:1609.03499), takes a step for each chunk of samples; the second takes one for each
    sample. Both also see the excitation around one pitch period ago, at a lag that is followed in the mel spectrogram.
    The map is triangular, so `log_prob` is exact, and a generation takes one step a sample.

    Beyond the ends of a waveform there is silence. A model without mel spectrograms is given their mean over training
    data in every frame.

    Args:
        spec: settings of the mel spectrograms, those of `MelSpec`; None for its defaults.
        conditional: whether mel spectrograms are given; otherwise only the sample rate of ``spec`` counts.
        speakers: number of speakers that are told apart; 0 for none.
        order: of the linear prediction.
        chunk: samples of a step of the first network; a divisor of the hop. 1 makes it a WaveNet over samples.
        channels: of its layers.
        dilations: of its layers, in chunks.
        width: of the second network.
        features: of a frame.
        density: of the excitation given the past: "normal", or "johnson" for `JohnsonSU`, of heavier tails.
        pitch: whether the networks see the excitation one pitch period ago.

    Raises:
        UserError: for a chunk that does not fit the hop or the shortest pitch period.
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
    def bijection(self) -> PredictiveBijection:  # type: ignore[override]  # made anew, so that it is no part of the state
        """Waveforms ↔ latents, given `Conditions`."""
        return PredictiveBijection(self)

    @property
    def memory(self) -> int:
        """Samples before its own that a sample's parameters depend on."""
        recent = max(2 * self.chunk, RECENT, self.ahead + lags(self.spec)[1])
        return (self.trunk.stack.reach + 1) * self.chunk + recent + self.order

    @torch.no_grad()
    def round_weights(self) -> None:
        """Rounds weights that each step of the first network reads to bfloat16: synthesis then reads half the memory.

        Density and synthesis stay inverse to each other: both use the rounded weights.
        """
        stack = self.trunk.stack
        for weight in (stack.present, stack.residual, self.trunk.leave.weight):
            weight.copy_(weight.bfloat16())

    def _context(
        self, waveform: Float[Tensor, "batch samples"], condition: Condition, lengths: Int[Tensor, " batch"] | None
    ) -> Conditions:
        """What is known of the sub-frames of a waveform."""
        batch, samples = waveform.shape
        frames, mel = self.spec.frames(samples), condition.mel
        if mel is None:
            mel = self.mean_mel[None, :, None].expand(1, -1, frames)
        elif not torch.compiler.is_compiling() and not mel.isfinite().all():
            raise UserError("the mel spectrogram holds values that are no finite numbers: compute it again")
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
        """Standard normal latents at a temperature, or at one for voiced and one for unvoiced speech."""
        if not isinstance(temperature, tuple):
            return super()._scaled(z, temperature, condition)
        with torch.no_grad():
            conditions = self._context(z, condition, None)
        return z * mixed_temperature(self, temperature, conditions)[:, : z.shape[1]]

    def _generate(
        self, z: Float[Tensor, "batch samples"], condition: Condition, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, " batch"]]:
        """Latents → waveform, silent after its end, and its log-determinant."""
        with torch.no_grad():
            context = self.context(z, condition, lengths)
        x, log_derivative = SampleBySample(self).run(z, context)
        return within(x, lengths), within(log_derivative, lengths).sum(1)

    def continuation(self) -> SampleBySample:
        """Synthesis by blocks of frames."""
        return SampleBySample(self)

    def windows(self, start: int, stop: int, samples: int, context: Any) -> tuple[Window, Window]:
        """Parts of a waveform around a gap, of whole frames; see `SpeechFlow.windows`."""
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
        """Fits what is not learned to segments of training speech; what was fitted or loaded before stays.

        These are the levels above the highest mel band, the units of the networks' inputs, and the mean spectrum.
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
        ends = min(REACH, (known.shape[1] - 1) // 2)  # where what lies beyond the segment is missing
        self.encoder.fit(known[:, ends : known.shape[1] - ends].to(self.mean_mel.dtype))


class PredictiveBijection:
    """The map of a `PredictiveFlow` between waveforms and latents; its context is `Conditions`."""

    def __init__(self, flow: PredictiveFlow) -> None:
        self.flow = flow

    def transform(
        self, x: Float[Tensor, "batch samples"], context: Any = None
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, "batch samples"]]:
        """Waveform → latents, and the log-derivative of each sample's map.

        Without gradients a long waveform is mapped piece by piece, each with what its first sample depends on.
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
        """Latents → waveform, and the log-determinant of this direction; a compiled loop on the CPU."""
        x, log_derivative = SampleBySample(self.flow).run(z, context)
        return x, log_derivative.sum(1)

    def _map(
        self, x: Float[Tensor, "batch samples"], conditions: Conditions
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, "batch samples"]]:
        """Whole frames → latents and log-derivatives."""
        coefficients, gain, level = conditions.filters
        log_gain, level = (part.repeat_interleave(self.flow.subframe, 1).to(x.dtype) for part in (gain.log(), level))
        predicted = predict(x, coefficients)
        excitation = (x - predicted) * (-log_gain).exp()
        log_ratio = level.log() - log_gain
        parameters = self._of_samples(excitation, x / level, predicted / level, log_ratio, conditions)
        z, log_derivative = self.flow.elementwise(excitation, parameters)
        return z, log_derivative - log_gain

    def _of_samples(
        self, excitation: Tensor, x: Tensor, predicted: Tensor, log_ratio: Tensor, conditions: Conditions
    ) -> Float[Tensor, "batch samples parameters"]:
        """The parameters of every sample's map; the waveform and its prediction are in units of the level."""
        flow, samples, size = self.flow, excitation.shape[1], self.flow.chunk
        compressed = excitation.asinh()  # what is loud must not drown what is not
        recent = [F.pad(part, (RECENT, 0))[:, :-1].unfold(1, RECENT, 1) for part in (compressed, x)]
        coarse = [F.pad(part, (2 * size, 0)).unfold(1, 2 * size, size)[:, :-1] for part in (compressed, x)]
        if flow.pitch:
            period = self._one_period_ago(compressed, conditions.lag)
            place = flow.ahead - PERIOD_TAPS
            recent.append(period[:, place:].unfold(1, 2 * PERIOD_TAPS + 1, 1)[:, :samples])
            place = flow.ahead - size
            coarse.append(period[:, place:].unfold(1, 3 * size, size)[:, : samples // size])
        state = flow.trunk(torch.cat(coarse, 2), conditions.features)
        return flow.head(torch.cat([*recent, predicted[..., None], log_ratio[..., None]], 2), state)

    def _one_period_ago(
        self, compressed: Float[Tensor, "batch samples"], lag: Int[Tensor, "batch subframes_and_more"]
    ) -> Float[Tensor, "batch samples_and_more"]:
        """The excitation one pitch period before each time, from `ahead` samples before the first to after the last."""
        flow, before = self.flow, lags(self.flow.spec)[1] + self.flow.ahead
        times = torch.arange(-flow.ahead, compressed.shape[1] + flow.ahead, device=compressed.device)
        places = times - lag[:, times.clamp_min(0) // flow.subframe + flow.per_frame]
        return F.pad(compressed, (before, 0)).gather(1, places + before)
