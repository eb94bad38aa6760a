"""PredictiveFlow: an autoregressive flow over samples of speech that linear prediction has whitened."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arflows.audio import streaming
from arflows.audio.linear_prediction import Envelope, predict
from arflows.audio.pitch import correlations, lags, track
from arflows.audio.predictive_conditions import (
    REACH,
    SURROUNDINGS,
    Conditions,
    ConditionStream,
    conditions_of,
)
from arflows.audio.predictive_network import PERIOD_TAPS, RECENT, FrameEncoder, Head, Trunk
from arflows.audio.predictive_synthesis import Part, Synthesis
from arflows.audio.representation import Condition, MelSpec, log_mel
from arflows.audio.speech_flow import SpeechFlow
from arflows.core.bijections.elementwise import Elementwise, LocationScale
from arflows.core.bijections.johnson import JohnsonSU
from arflows.core.inversion import Solver
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

    `log_prob` is the density in nats of a waveform as a vector of numbers in [−1, 1], in the literature's convention;
    divide by the number of samples for nats per sample. Waveforms of a batch may differ in length; beyond the ends of
    each there is silence, and the density of each is that of the waveform alone.

    A model without mel spectrograms is given their mean over training data in every frame.

    Args:
        spec: settings of the mel spectrograms, those of `MelSpec`; None for its defaults.
        conditional: whether mel spectrograms are given; otherwise only the sample rate of ``spec`` counts.
        speakers: number of speakers that are told apart; 0 for none.
        order: of the linear prediction.
        chunk: samples of a step of the first network, S; a divisor of the hop. 1 makes it a WaveNet over samples.
        channels: of its layers.
        dilations: of its layers, in chunks.
        width: of the second network.
        features: of a frame.
        density: of the excitation given the past: "normal", or "johnson" for `JohnsonSU`, of heavier tails.
        pitch: whether the networks see the excitation one pitch period ago.

    Raises:
        UserError: for a chunk that does not fit the hop or the shortest pitch period.
    """

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
        nn.Module.__init__(self)
        self.spec = MelSpec.from_dict(spec or {})
        self.conditional, self.speakers = conditional, speakers
        self.order, self.pitch = order, pitch
        self.chunk = self.period = chunk
        hop = self.spec.hop
        fitting = [size for size in range(chunk, SUBFRAME + 1, chunk) if hop % size == 0] if chunk >= 1 else []
        shortest, _ = lags(self.spec)
        self.ahead = max(PERIOD_TAPS, 2 * chunk) if chunk > 1 else PERIOD_TAPS
        if not fitting or self.ahead > shortest:
            raise UserError(
                f"chunk={chunk} does not fit: it must divide the hop of {hop} samples and be at most "
                f"{min(SUBFRAME, shortest // 2)}"
            )
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
    def device(self) -> torch.device:
        """Where the flow computes."""
        return self.mean_mel.device

    # ------------------------------------------------------------------------------------------------- densities

    def log_prob(  # type: ignore[override]  # conditions are more than a tensor
        self,
        waveform: Float[Tensor, "batch samples"],
        context: Condition | None = None,
        *,
        mel: Float[Tensor, "batch bands frames"] | None = None,
        speaker: Int[Tensor, " batch"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Log-density of each waveform in nats.

        Args:
            waveform: samples in [−1, 1]; zeros after the end of those that are shorter.
            context: mel spectrogram and speaker in one, instead of the next two.
            mel: log-mel spectrograms with a frame for each hop that has begun; or with `surroundings` more frames
                before and after them, where the waveform is a part of a longer one.
            speaker: number of the speaker of each waveform.
            lengths: samples of each waveform; None if all are full.

        Raises:
            UserError: for a condition that is missing, superfluous, or does not fit the waveform.
        """
        return self.log_prob_per_sample(waveform, context, mel=mel, speaker=speaker, lengths=lengths).sum(1)

    def log_prob_per_sample(
        self,
        waveform: Float[Tensor, "batch samples"],
        context: Condition | None = None,
        *,
        mel: Float[Tensor, "batch bands frames"] | None = None,
        speaker: Int[Tensor, " batch"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch samples"]:
        """What each sample contributes to `log_prob`: its log-density given those before it."""
        condition = Condition(mel, speaker) if context is None else context
        z, log_derivative = self._transform(waveform, condition, lengths)
        log_density = log_derivative - 0.5 * (z.square() + math.log(2 * math.pi)).to(log_derivative.dtype)
        return self._within(log_density, lengths)

    def _transform(
        self, waveform: Tensor, condition: Condition, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, "batch samples"]]:
        """Waveform → latents, with the log-derivative sample by sample."""
        samples = waveform.shape[1]
        self._check(condition, len(waveform), samples, lengths)
        waveform = F.pad(self._within(waveform, lengths), (0, -samples % self.spec.hop))
        mel = self._surrounded(condition, len(waveform), samples, lengths)
        if torch.is_grad_enabled() or mel.shape[2] <= WINDOW + 2 * SURROUNDINGS:
            z, log_derivative = self._map(waveform, conditions_of(self, mel, condition.speaker))
        else:
            z, log_derivative = self._map_by_windows(waveform, mel[:, :, SURROUNDINGS:-SURROUNDINGS], condition.speaker)
        return z[:, :samples], log_derivative[:, :samples]

    def _map_by_windows(
        self, waveform: Tensor, mel: Tensor, speaker: Tensor | None
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, "batch samples"]]:
        """Maps a long waveform piece by piece, each with as much before it as its networks see."""
        hop, longest = self.spec.hop, lags(self.spec)[1]
        seen = self.trunk.stack.reach * self.chunk + max(2 * self.chunk, RECENT) + self.ahead + longest + self.order
        before = -(-seen // hop)
        stream = ConditionStream(self, len(waveform), speaker, WINDOW)
        stream.take(mel)
        parts, done = [], 0
        previous: Conditions | None = None
        for frames, conditions in stream.ready(ended=True):
            lead = min(before, done)
            joined = (
                conditions
                if previous is None
                else previous.last(lead, self.per_frame).followed(conditions, self.per_frame)
            )
            piece = waveform[:, (done - lead) * hop : (done + WINDOW) * hop]
            piece = F.pad(piece, (0, (lead + WINDOW) * hop - piece.shape[1]))
            parts.append([part[:, lead * hop : (lead + frames) * hop] for part in self._map(piece, joined)])
            previous, done = joined, done + frames
        z, log_derivative = (torch.cat(pieces, 1) for pieces in zip(*parts, strict=True))
        return z, log_derivative

    def _map(
        self, waveform: Float[Tensor, "batch samples"], conditions: Conditions
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, "batch samples"]]:
        """Whole frames → latents and log-derivatives."""
        coefficients, gain, level = conditions.filters
        log_gain, level = (self._per_sample(part).to(waveform.dtype) for part in (gain.log(), level))
        predicted = predict(waveform, coefficients)
        excitation = (waveform - predicted) * (-log_gain).exp()
        parameters = self._of_samples(
            excitation, waveform / level, predicted / level, level.log() - log_gain, conditions
        )
        z, log_derivative = self.elementwise(excitation, parameters)
        return z, log_derivative - log_gain

    def _of_samples(
        self, excitation: Tensor, waveform: Tensor, predicted: Tensor, log_ratio: Tensor, conditions: Conditions
    ) -> Float[Tensor, "batch samples parameters"]:
        """The parameters of every sample's map; waveform and its prediction are in units of the level."""
        samples, size = excitation.shape[1], self.chunk
        compressed = excitation.asinh()  # what is loud must not drown what is not
        recent = [F.pad(part, (RECENT, 0))[:, :-1].unfold(1, RECENT, 1) for part in (compressed, waveform)]
        coarse = [F.pad(part, (2 * size, 0)).unfold(1, 2 * size, size)[:, :-1] for part in (compressed, waveform)]
        if self.pitch:
            period = self._one_period_ago(compressed, conditions.lag)
            place = self.ahead - PERIOD_TAPS
            recent.append(period[:, place:].unfold(1, 2 * PERIOD_TAPS + 1, 1)[:, :samples])
            place = self.ahead - size
            coarse.append(period[:, place:].unfold(1, 3 * size, size)[:, : samples // size])
        state = self.trunk(torch.cat(coarse, 2), conditions.features)
        return self.head(torch.cat([*recent, predicted[..., None], log_ratio[..., None]], 2), state)

    def _one_period_ago(
        self, compressed: Float[Tensor, "batch samples"], lag: Int[Tensor, "batch subframes"]
    ) -> Float[Tensor, "batch samples_and_more"]:
        """The excitation one pitch period before each time, from `ahead` samples before the first to after the last."""
        longest = lags(self.spec)[1]
        times = torch.arange(-self.ahead, compressed.shape[1] + self.ahead, device=compressed.device)
        places = times - lag[:, times.clamp_min(0) // self.subframe + self.per_frame]
        padded = F.pad(compressed, (longest + self.ahead, 0))
        return padded.gather(1, places + longest + self.ahead)

    def encode(self, waveform: Tensor, context: Condition | None = None, **conditions: Any) -> Tensor:  # type: ignore[override]
        """Waveform → latents (batch, samples), in evaluation mode; conditions are those of `log_prob`."""
        condition = Condition(conditions.get("mel"), conditions.get("speaker")) if context is None else context
        with self._evaluating():
            return self._transform(waveform, condition, conditions.get("lengths"))[0]

    def decode(self, z: Tensor, context: Condition | None = None, **conditions: Any) -> Tensor:  # type: ignore[override]
        """Latents (batch, samples) → waveform, in evaluation mode; conditions are those of `log_prob`."""
        condition = Condition(conditions.get("mel"), conditions.get("speaker")) if context is None else context
        return self._generate(z, condition, conditions.get("lengths"))[0]

    @torch.no_grad()
    def round_trip_error(self, waveform: Tensor, context: Condition | None = None, **conditions: Any) -> Tensor:  # type: ignore[override]
        """Largest difference of each waveform from what its latents decode to; conditions are those of `log_prob`."""
        z = self.encode(waveform, context, **conditions)
        return (self.decode(z, context, **conditions) - waveform).abs().amax(1)

    # --------------------------------------------------------------------------------------------------- samples

    @torch.no_grad()
    def sample(  # type: ignore[override]  # conditions are more than a tensor
        self,
        count: int | None = None,
        context: Condition | None = None,
        *,
        mel: Float[Tensor, "batch bands frames"] | None = None,
        speaker: Int[Tensor, " batch"] | None = None,
        samples: int | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
        temperature: float | tuple[float, float] = 1.0,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
    ) -> Float[Tensor, "batch samples"]:
        """Draws waveforms, in evaluation mode and without gradients.

        Args:
            count: how many; None for one of each condition.
            context: mel spectrogram and speaker in one, instead of the next two.
            mel: log-mel spectrograms to vocode; a single one serves all.
            speaker: number of the speaker of each waveform, or of all.
            samples: length of the waveforms; None for all frames of the mel spectrogram.
            lengths: samples of each waveform where they differ; zeros follow.
            temperature: multiplies the latents' standard deviation; or that of voiced and that of unvoiced speech.
            generator: source of randomness; a CPU generator gives the same latents on every device.
            solver: has no effect: the map is inverted sample by sample.

        Raises:
            UserError: for a condition that is missing, superfluous or does not fit, or no length.
        """
        return self._draw(count, context, mel, speaker, samples, lengths, temperature, generator)[0]

    @torch.no_grad()
    def sample_with_log_prob(  # type: ignore[override]  # conditions are more than a tensor
        self, count: int | None = None, context: Condition | None = None, **options: Any
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, " batch"]]:
        """Draws waveforms and gives the log-density of each, at temperature 1, in nats; takes what `sample` takes."""
        options.pop("solver", None)
        return self._draw(count, context, **options)

    def stream(
        self,
        mel_chunks: Iterable[Float[Tensor, "batch bands frames"]],
        *,
        speaker: Int[Tensor, " batch"] | None = None,
        temperature: float | tuple[float, float] = 1.0,
        seed: int = 0,
    ) -> Iterator[Float[Tensor, "batch samples"]]:
        """Synthesises while mel spectrograms still arrive; what comes out does not depend on how they are cut.

        The waveform is `decode` of `arflows.audio.streaming.latents` times the temperature. Of each block of `BLOCK`
        frames it comes as soon as `REACH` + `LOOK_AHEAD` frames after it are known.

        Args:
            mel_chunks: log-mel spectrograms, one after the other, of any numbers of frames.
            speaker: number of the speaker of each waveform.
            temperature: multiplies the latents' standard deviation; or that of voiced and that of unvoiced speech.
            seed: of the latents.

        Yields:
            The samples that follow; together as many as the frames' hops.

        Raises:
            UserError: for a model without mel spectrograms, or chunks that do not fit it or each other.
        """
        streaming.check(self, speaker, seed)
        synthesis: Synthesis | None = None
        for chunk in mel_chunks:
            streaming.check_chunk(self, chunk, None if synthesis is None else synthesis.batch)
            if synthesis is None:
                latents = functools.partial(streaming.latents, len(chunk), seed=seed)
                synthesis = Synthesis(self, len(chunk), speaker, temperature, latents)
            synthesis.take(chunk)
            yield from (part.waveform for part in synthesis.ready(ended=False))
        if synthesis is not None:
            yield from (part.waveform for part in synthesis.ready(ended=True))

    def _draw(
        self,
        count: int | None,
        context: Condition | None,
        mel: Tensor | None = None,
        speaker: Tensor | None = None,
        samples: int | None = None,
        lengths: Tensor | None = None,
        temperature: float | tuple[float, float] = 1.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        condition = Condition(mel, speaker) if context is None else context
        given = [part for part in (condition.mel, condition.speaker, lengths) if part is not None]
        count = count if count is not None else max((len(part) for part in given), default=1)
        if count < 1:
            raise UserError(f"the number of samples must be at least 1, got {count}")
        if samples is None:
            if condition.mel is None:
                raise UserError("an unconditional model does not know how long a waveform shall be: give samples")
            samples = condition.mel.shape[-1] * self.spec.hop
        device = generator.device if generator is not None else self.device
        z = torch.randn(count, samples, generator=generator, device=device, dtype=self.mean_mel.dtype).to(self.device)
        return self._generate(z, condition, lengths, temperature)

    @torch.no_grad()
    def _generate(
        self,
        z: Float[Tensor, "batch samples"],
        condition: Condition,
        lengths: Tensor | None,
        temperature: float | tuple[float, float] = 1.0,
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, " batch"]]:
        """Latents → waveforms, and the log-density of these."""
        samples = z.shape[1]
        self._check(condition, len(z), samples, lengths)
        mel = self._ended(condition, len(z), samples, lengths)
        z = F.pad(z, (0, -samples % self.spec.hop))

        def drawn(start: int, stop: int) -> Tensor:
            return z[:, start:stop]

        synthesis = Synthesis(self, len(z), condition.speaker, temperature, drawn)
        synthesis.take(mel)
        parts = list(synthesis.ready(ended=True))
        waveform, log_density = (
            torch.cat([getattr(part, name) for part in parts], 1)[:, :samples] for name in Part._fields
        )
        return self._within(waveform, lengths), self._within(log_density, lengths).sum(1)

    # ------------------------------------------------------------------------------------------------ conditions

    def _surrounded(
        self, condition: Condition, batch: int, samples: int, lengths: Tensor | None
    ) -> Float[Tensor, "batch bands surrounded_frames"]:
        """The mel spectrogram with what is around it: what was given, or silence."""
        mel = condition.mel
        if mel is not None and mel.shape[2] == self.spec.frames(samples) + 2 * SURROUNDINGS:
            return mel.expand(batch, -1, -1)
        mel = self._ended(condition, batch, samples, lengths)
        return F.pad(mel, (SURROUNDINGS, SURROUNDINGS), value=self.spec.silence)

    def _ended(
        self, condition: Condition, batch: int, samples: int, lengths: Tensor | None
    ) -> Float[Tensor, "batch bands frames"]:
        """The mel spectrogram with silence after the end of waveforms that are shorter."""
        frames, mel = self.spec.frames(samples), condition.mel
        if not self.conditional:
            mel = self.mean_mel[None, :, None].expand(1, -1, frames)
        assert mel is not None
        if lengths is not None:
            ends = (lengths.to(mel.device) - 1) // self.spec.hop + 1
            mel = torch.where(torch.arange(frames, device=mel.device) < ends[:, None, None], mel, self.spec.silence)
        return mel.expand(batch, -1, -1)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: object = None) -> None:  # type: ignore[override]
        """Fits what is not learned to segments of training speech; what was fitted or loaded before stays.

        These are the levels above the highest mel band, the units of the networks' inputs, and the mean spectrum.
        """
        if self.envelope.fitted:
            return
        mel = log_mel(x, self.spec)
        self.envelope.fit(mel, x)
        self.mean_mel.copy_(mel.mean((0, 2)))
        if not self.conditional:
            mel = self.mean_mel[None, :, None].expand_as(mel)
        log_amplitude = self.envelope(mel)
        known, _ = self._known(mel, log_amplitude, track(correlations(log_amplitude, self.spec), self.spec))
        self.encoder.fit(known[:, REACH:-REACH].to(self.mean_mel.dtype))

    def _per_sample(self, values: Float[Tensor, "batch subframes"]) -> Float[Tensor, "batch samples"]:
        return values.repeat_interleave(self.subframe, 1)
