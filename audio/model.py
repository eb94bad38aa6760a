"""WaveFlow: an autoregressive flow over waveforms, conditioned on mel spectrograms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from arflows.audio import inpainting, streaming
from arflows.audio.conditions import ConditionEncoder
from arflows.audio.folding import Folded, rows_reversed
from arflows.audio.presets import PRESETS, height_dilations
from arflows.audio.representation import Condition, MelSpec
from arflows.audio.speech_flow import SpeechFlow
from arflows.core.bases import StandardNormal
from arflows.core.bijections import Affine, Autoregressive
from arflows.core.conditioners.wavenet import WaveNet
from arflows.core.inversion import Solver, use_solver
from arflows.core.runtime.errors import UserError

WIDTH_CYCLE = 8
"""Dilations along the rows are powers of two that begin anew after so many layers."""


class WaveFlow(SpeechFlow):
    """A flow over waveforms in [−1, 1] that are folded to rows, autoregressive over these.

    Ping, Peng, Zhao & Song, "WaveFlow", 2020 (arXiv:1912.01219). A waveform is folded to columns of ``height``
    consecutive samples; row i holds the i-th samples of all columns. Each flow maps a sample affinely, with parameters
    that a `WaveNet` computes from the rows generated before; between flows rows are reversed, in the second half of the
    flows each half by itself (bipartite). `log_prob` is the density in nats of a waveform as a vector of numbers in
    [−1, 1], in the literature's convention; divide by the number of samples for the published nats per sample.

    Waveforms need not fill their last column, and those of a batch may differ in length: what is missing acts as the
    zeros beyond a border, and the density of each is that of the waveform alone.

    Args:
        spec: settings of the mel spectrograms, those of `MelSpec`; None for its defaults.
        conditional: whether mel spectrograms are given; otherwise only the sample rate of ``spec`` counts.
        speakers: number of speakers that are told apart; 0 for none.
        height: samples of a column, h: how many steps a generation takes. As many as a waveform has make a WaveNet
            over single samples.
        channels: of the WaveNets.
        layers: of each WaveNet.
        flows: number of flows.
        kernel: of the convolutions, down the rows and along them.
        causal_width: let no column see later columns, so that synthesis can be streamed exactly.

    Raises:
        UserError: for a height below 2.
    """

    bijection: Folded

    def __init__(
        self,
        spec: Mapping[str, Any] | None = None,
        conditional: bool = True,
        speakers: int = 0,
        height: int = 16,
        channels: int = 64,
        layers: int = 8,
        flows: int = 8,
        kernel: tuple[int, int] = (3, 3),
        causal_width: bool = False,
    ) -> None:
        self_spec = MelSpec.from_dict(spec or {})
        if height < 2:
            raise UserError(f"height={height} must be at least 2: a single row has nothing to depend on")
        features = (self_spec.bands if conditional else channels) if conditional or speakers else 0
        kernel = (int(kernel[0]), int(kernel[1]))
        down = height_dilations(height, layers, kernel[0])
        dilations = [(down[layer], 2 ** (layer % WIDTH_CYCLE)) for layer in range(layers)]
        reversals = [rows_reversed(height, bipartite=number >= flows // 2) for number in range(flows)]
        order = torch.arange(height)
        bijections = []
        for reversal in reversals:
            network = WaveNet(channels, dilations, kernel, features, causal_width, order)
            bijections.append(Autoregressive(Affine(), network, order))
            order = order[reversal]
        super().__init__(StandardNormal(()), Folded(height, bijections))
        self.spec = self_spec
        self.conditional = conditional
        self.speakers = speakers
        self.height = self.period = height
        self.causal_width = causal_width
        self.encoder = ConditionEncoder(self_spec, features, conditional, speakers) if features else None

    @classmethod
    def from_preset(cls, name: str, **options: Any) -> Self:
        """An untrained model of a known size, such as "h16_c64"; ``options`` are the other arguments.

        Raises:
            UserError: for an unknown name.
        """
        if name not in PRESETS:
            raise UserError(f"there is no preset {name!r}: choose {', '.join(PRESETS)}")
        return cls(**PRESETS[name] | options)

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
            mel: log-mel spectrograms with a frame for each hop that has begun.
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
        """What each sample contributes to `log_prob`: its latent's log-density and its log-derivative.

        The contributions add up to the waveform's log-density; each is that of the sample given those generated before.
        """
        columns = self._columns(waveform, Condition(mel, speaker) if context is None else context, lengths)
        z, log_derivative = self.bijection.transform(self._within(waveform, lengths), columns)
        log_density = log_derivative - 0.5 * (z.square() + math.log(2 * math.pi)).to(log_derivative.dtype)
        return self._within(log_density, lengths)

    def encode(self, waveform: Tensor, context: Condition | None = None, **conditions: Any) -> Tensor:  # type: ignore[override]
        """Waveform → latents (batch, samples), in evaluation mode; conditions are those of `log_prob`."""
        lengths = conditions.get("lengths")
        with self._evaluating():
            columns = self._columns(waveform, _condition(conditions) if context is None else context, lengths)
            return self.bijection(self._within(waveform, lengths), columns)[0]

    def decode(self, z: Tensor, context: Condition | None = None, **conditions: Any) -> Tensor:  # type: ignore[override]
        """Latents (batch, samples) → waveform, in evaluation mode; conditions are those of `log_prob`."""
        lengths = conditions.get("lengths")
        with self._evaluating():
            condition = _condition(conditions) if context is None else context
            return self._generate(self._within(z, lengths), condition, lengths)[0]

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
        temperature: float = 1.0,
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
            temperature: multiplies the latents' standard deviation.
            generator: source of randomness; a CPU generator gives the same latents on every device.
            solver: how the flows are inverted; None for the solver in force, `Sequential` by default.

        Raises:
            UserError: for a condition that is missing, superfluous or does not fit, or no length.
            InversionError: if the solver finds no solution.
        """
        return self._draw(count, context, mel, speaker, samples, lengths, temperature, generator, solver)[0]

    def stream(
        self,
        mel_chunks: Iterable[Float[Tensor, "batch bands frames"]],
        *,
        speaker: Int[Tensor, " batch"] | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        block: int = 64,
        margin: int = 16,
    ) -> Iterator[Float[Tensor, "batch samples"]]:
        """Synthesises while mel spectrograms still arrive; see `arflows.audio.streaming.stream`."""
        return streaming.stream(self, mel_chunks, speaker, temperature, seed, block, margin)

    @torch.no_grad()
    def sample_with_log_prob(  # type: ignore[override]  # conditions are more than a tensor
        self, count: int | None = None, context: Condition | None = None, **options: Any
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, " batch"]]:
        """Draws waveforms and gives the log-density of each, at temperature 1, in nats; takes what `sample` takes."""
        return self._draw(count, context, **options)

    def _draw(
        self,
        count: int | None,
        context: Condition | None,
        mel: Tensor | None = None,
        speaker: Tensor | None = None,
        samples: int | None = None,
        lengths: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
    ) -> tuple[Tensor, Tensor]:
        condition = Condition(mel, speaker) if context is None else context
        if not temperature > 0:
            raise UserError(f"temperature must be greater than 0, got {temperature}")
        given = [part for part in (condition.mel, condition.speaker, lengths) if part is not None]
        count = count if count is not None else max((len(part) for part in given), default=1)
        if count < 1:
            raise UserError(f"the number of samples must be at least 1, got {count}")
        if len(given) and count > 1:
            condition = Condition(_repeated(condition.mel, count), _repeated(condition.speaker, count))
        if samples is None:
            if condition.mel is None:
                raise UserError("an unconditional model does not know how long a waveform shall be: give samples")
            samples = condition.mel.shape[-1] * self.spec.hop
        device = generator.device if generator is not None else self.device
        z = torch.randn(count, samples, generator=generator, device=device, dtype=self.base.origin.dtype)
        z = self._within(temperature * z.to(self.device), lengths)
        with self._evaluating(), nullcontext() if solver is None else use_solver(solver):
            waveform, log_det = self._generate(z, condition, lengths)
        log_density = self._within(-0.5 * (z.square() + math.log(2 * math.pi)), lengths)
        return waveform, log_density.sum(1) - log_det

    def _generate(
        self, z: Float[Tensor, "batch samples"], condition: Condition, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, " batch"]]:
        """Latents → waveform, and its log-determinant."""
        batch, samples = z.shape
        self._check(condition, batch, samples, lengths)
        if z.is_cuda:
            z, condition, lengths = self.widened(z, condition, lengths)
        waveform, log_det = self.bijection.inverse(z, self._columns(z, condition, lengths))
        return waveform[:, :samples], log_det

    def widened(
        self, z: Float[Tensor, "batch samples"], condition: Condition, lengths: Tensor | None
    ) -> tuple[Tensor, Condition, Tensor]:
        """The same latents, followed by zeros that do not count, in one of eight widths an octave.

        On CUDA the loops of generation are captured for each shape; so waveforms of most lengths find theirs captured.
        """
        batch, samples = z.shape
        columns = -(-samples // self.height)
        step = 1 << max(columns.bit_length() - 4, 0)
        wide = -(-columns // step) * step * self.height
        lengths = torch.full((batch,), samples, device=z.device) if lengths is None else lengths
        mel = condition.mel
        if mel is not None:
            mel = F.pad(mel, (0, self.spec.frames(wide) - mel.shape[2]))
        return F.pad(z, (0, wide - samples)), Condition(mel, condition.speaker), lengths

    def inpaint(
        self,
        waveform: Float[Tensor, "1 samples"],
        start: int,
        stop: int,
        mel: Float[Tensor, "1 bands frames"] | None = None,
        *,
        speaker: Int[Tensor, " 1"] | None = None,
        count: int = 1,
        temperature: float = 1.0,
        steps: int = inpainting.STEPS,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "count samples"], Float[Tensor, " count"]]:
        """Draws what may stand between two samples of a waveform; see `arflows.audio.inpainting.inpaint`."""
        return inpainting.inpaint(
            self, waveform, start, stop, Condition(mel, speaker), count, temperature, steps, generator
        )

    @property
    def reach(self) -> int:
        """Columns to the left, and mostly to the right, on which latents and density of a column depend."""
        return sum(layer.margins[0] for flow in self.bijection.networks for layer in flow.stack)

    # ------------------------------------------------------------------------------------------------ conditions

    def _columns(
        self, waveform: Tensor, condition: Condition, lengths: Tensor | None
    ) -> Float[Tensor, "batch features *rows columns"] | None:
        """What the WaveNets are given of each column; see `WaveNet`."""
        batch, samples = waveform.shape
        self._check(condition, batch, samples, lengths)
        lengths = None if lengths is None else lengths.to(waveform.device)
        features = self.column_features(condition, -(-samples // self.height), lengths)
        return self.counted(features, waveform, lengths)

    def column_features(
        self, condition: Condition, columns: int, lengths: Tensor | None = None
    ) -> Float[Tensor, "batch features *rows columns"] | None:
        """What the mel spectrogram and the speaker say of each column, or of each sample if columns span frames."""
        if self.encoder is None:
            return None
        if not self.conditional or self.height <= self.spec.hop:
            return self.encoder(condition, columns, self.height, lengths)
        return self.encoder(condition, columns * self.height, 1, lengths).unflatten(2, (columns, self.height)).mT

    def counted(
        self, features: Tensor | None, waveform: Float[Tensor, "batch samples"], lengths: Tensor | None = None
    ) -> Float[Tensor, "batch features *rows columns"] | None:
        """The features with the count of each column's samples where not all columns of ``waveform`` are full."""
        batch, samples = waveform.shape
        if features is not None:
            # In full precision also where the encoder ran in half: counts would be rounded.
            features = features.expand(batch, *features.shape[1:]).to(waveform.dtype)
        if lengths is None:
            if samples % self.height == 0:
                return features
            lengths = torch.full((batch,), samples, device=waveform.device)
        starts = torch.arange(0, samples, self.height, device=waveform.device)
        inside = (lengths[:, None] - starts).clamp(0, self.height)[:, None]
        if features is None:
            return inside.to(waveform.dtype)
        if features.ndim == 4:
            inside = inside[:, :, None].expand(-1, -1, self.height, -1)
        return torch.cat([features, inside.to(features.dtype)], 1)


def _condition(conditions: Mapping[str, Any]) -> Condition:
    return Condition(conditions.get("mel"), conditions.get("speaker"))


def _repeated(part: Tensor | None, count: int) -> Tensor | None:
    return part if part is None or len(part) == count else part.expand(count, *part.shape[1:])
