"""The interface of flows over waveforms, given mel spectrograms and speakers or not."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arflows.audio.parts import Continuation, SampleBijection, Window
from arflows.audio.representation import Condition, MelSpec
from arflows.audio.training_mels import TrainingMels
from arflows.core.flow import Flow, evaluating, require_tensor
from arflows.core.inversion import Solver, use_solver
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.pretrained import Pretrained
from arflows.core.runtime.torch_compat import is_transformed

Temperature: TypeAlias = float | tuple[float, float]
"""Factor of the latents' standard deviation; or that of voiced and that of unvoiced speech."""


class SpeechFlow(Flow, Pretrained):
    """A flow over waveforms in [−1, 1] with standard normal latents, one for each sample.

    `log_prob` is the density in nats of a waveform as a vector of numbers in [−1, 1], in the literature's convention;
    divide by the number of samples for the published nats per sample.

    Waveforms of a batch may differ in length: their missing samples act as the zeros beyond a border, and the density
    of each is that of the waveform alone.

    A subclass sets ``bijection`` and defines `_context`; `windows` is for inpainting, `continuation` for streaming.

    Args:
        spec: settings of the mel spectrograms.
        conditional: True if mel spectrograms are given; otherwise only the sample rate of ``spec`` counts.
        speakers: number of speakers that are told apart; 0 for none.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Arguments of known sizes, by their names."""
    bijection: SampleBijection
    height: int = 1
    """Samples of a column, if the waveform is folded to columns; parts of a waveform begin at a column."""
    lead: int = 0
    """Frames before a training segment that it comes with and that the loss leaves out."""
    surroundings: int = 0
    """Frames of the mel spectrogram that a training segment comes with before its lead and after its end."""

    def __init__(self, spec: MelSpec, conditional: bool, speakers: int) -> None:
        super().__init__()
        self.spec = spec
        self.conditional = conditional
        self.speakers = speakers
        self.training_mels = TrainingMels(spec) if conditional else None

    @classmethod
    def from_preset(cls, name: str, **options: Any) -> Self:
        """An untrained model of a known size, such as "h16_c64"; ``options`` are the other arguments.

        Raises:
            UserError: for an unknown name.
        """
        if name not in cls.presets:
            raise UserError(f"there is no preset {name!r}: choose {', '.join(cls.presets)}")
        return cls(**{**cls.presets[name], **options})

    @property
    def frame_step(self) -> int:
        """Mel frames that fill whole columns: parts of a spectrogram begin at multiples of it."""
        return math.lcm(self.spec.hop, self.height) // self.spec.hop

    @property
    def likelihood(self) -> Literal["exact", "density", "bound"]:
        """A density of waveforms."""
        return "density"

    @abstractmethod
    def _context(
        self, waveform: Float[Tensor, "batch samples"], condition: Condition, lengths: Int[Tensor, " batch"] | None
    ) -> Any:
        """What the bijection is given beside a waveform of this shape; the condition has been checked."""

    @abstractmethod
    def windows(self, start: int, stop: int, samples: int, context: Any) -> tuple[Window, Window]:
        """Two parts of a waveform around the samples ``start`` … ``stop`` − 1.

        Changes of these samples change the density of the first part as they change that of the whole waveform. The
        second part is smaller: the density's gradient with respect to the samples is about right in it.

        Args:
            start: first sample.
            stop: the sample after the last.
            samples: samples of the waveform.
            context: context of the waveform.
        """

    def continuation(self) -> Continuation | None:
        """Exact synthesis part by part; None for a flow whose samples depend on all frames to come."""
        return None

    def initialize(self, x: Float[Tensor, "batch samples"], /, *conditions: Any, **options: Any) -> None:
        """Keep statistics of the mel spectrograms, and initialise the layers that start from data."""
        if self.training_mels is not None and "mel" in options:
            self.training_mels.initialize_from(options["mel"])
        super().initialize(x, *conditions, **options)

    # ------------------------------------------------------------------------------------------------- densities

    def log_prob(
        self,
        waveform: Float[Tensor, "batch samples"],
        *,
        mel: Float[Tensor, "batch bands frames"] | None = None,
        speaker: Int[Tensor, " batch"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Log-density of each waveform in nats.

        Args:
            waveform: samples in [−1, 1]; zeros after the end of those that are shorter.
            mel: log-mel spectrograms with a frame for each hop that has begun; `surroundings` more frames may come
                before and after them, where the waveform is part of a longer one.
            speaker: number of the speaker of each waveform.
            lengths: samples of each waveform; None if all are full.

        Raises:
            UserError: for a condition that is missing, superfluous, or does not fit the waveform.
        """
        return self.log_prob_per_sample(waveform, mel=mel, speaker=speaker, lengths=lengths).sum(1)

    def log_prob_per_sample(
        self,
        waveform: Float[Tensor, "batch samples"],
        *,
        mel: Float[Tensor, "batch bands frames"] | None = None,
        speaker: Int[Tensor, " batch"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch samples"]:
        """Contribution of each sample to `log_prob`: its latent's log-density and its log-derivative.

        The contributions add up to the waveform's log-density; each is that of the sample given those generated before.
        Arguments are those of `log_prob`.
        """
        context = self.context(waveform, Condition(mel, speaker), lengths)
        z, log_derivative = self.bijection.transform(within(waveform, lengths), context)
        return within(log_derivative + _log_normal(z).to(log_derivative.dtype), lengths)

    def encode(
        self,
        waveform: Float[Tensor, "batch samples"],
        *,
        mel: Float[Tensor, "batch bands frames"] | None = None,
        speaker: Int[Tensor, " batch"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch samples"]:
        """Waveform → latents, in evaluation mode; arguments are those of `log_prob`."""
        with evaluating(self):
            context = self.context(waveform, Condition(mel, speaker), lengths)
            return self.bijection.transform(within(waveform, lengths), context)[0]

    def decode(
        self,
        z: Float[Tensor, "batch samples"],
        *,
        mel: Float[Tensor, "batch bands frames"] | None = None,
        speaker: Int[Tensor, " batch"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch samples"]:
        """Latents → waveform, in evaluation mode; conditions are those of `log_prob`."""
        with evaluating(self):
            return self._generate(within(z, lengths), Condition(mel, speaker), lengths)[0]

    @torch.no_grad()
    def round_trip_error(
        self,
        waveform: Float[Tensor, "batch samples"],
        *,
        mel: Float[Tensor, "batch bands frames"] | None = None,
        speaker: Int[Tensor, " batch"] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Largest difference of each waveform from what its latents decode to; arguments are those of `log_prob`."""
        z = self.encode(waveform, mel=mel, speaker=speaker, lengths=lengths)
        back = self.decode(z, mel=mel, speaker=speaker, lengths=lengths)
        return (back - within(waveform, lengths)).abs().amax(1)

    # --------------------------------------------------------------------------------------------------- samples

    def sample(
        self,
        count: int | None = None,
        *,
        mel: Float[Tensor, "batch bands frames"] | None = None,
        speaker: Int[Tensor, " batch"] | None = None,
        samples: int | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
        temperature: Temperature = 1.0,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
    ) -> Float[Tensor, "batch samples"]:
        """Draws waveforms, in evaluation mode and without gradients.

        Args:
            count: how many; None for one of each condition.
            mel: log-mel spectrograms to vocode; a single one serves all.
            speaker: number of the speaker of each waveform, or of all.
            samples: length of the waveforms; None for all frames of the mel spectrogram.
            lengths: samples of each waveform where they differ; zeros follow.
            temperature: multiplies the latents' standard deviation; a flow that tells voiced from unvoiced speech takes
                one for each.
            generator: source of randomness; a CPU generator gives the same latents on every device.
            solver: how the flows are inverted; None for the active solver, `Sequential` by default.

        Raises:
            UserError: for a condition that is missing, superfluous or does not fit, or no length.
            InversionError: if the solver finds no solution.
        """
        return self.sample_with_log_prob(
            count,
            mel=mel,
            speaker=speaker,
            samples=samples,
            lengths=lengths,
            temperature=temperature,
            generator=generator,
            solver=solver,
        )[0]

    @torch.no_grad()
    def sample_with_log_prob(
        self,
        count: int | None = None,
        *,
        mel: Float[Tensor, "batch bands frames"] | None = None,
        speaker: Int[Tensor, " batch"] | None = None,
        samples: int | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
        temperature: Temperature = 1.0,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, " batch"]]:
        """Draws waveforms, and gives the log-density of each in nats, at temperature 1.

        Arguments are those of `sample`.
        """
        given = [part for part in (mel, speaker, lengths) if part is not None]
        count = count if count is not None else max((len(part) for part in given), default=1)
        if count < 1:
            raise UserError(f"the number of samples must be at least 1, got {count}")
        if samples is None:
            if mel is None:
                raise UserError("an unconditional model does not know how long a waveform shall be: give samples")
            samples = mel.shape[-1] * self.spec.hop
        condition = Condition(_repeated(mel, count), _repeated(speaker, count))
        self.check(condition, count, samples, lengths)
        device = generator.device if generator is not None else self.device
        z = torch.randn(count, samples, generator=generator, device=device, dtype=self.dtype)
        z = within(self._scaled(z.to(self.device), temperature, condition), lengths)
        with evaluating(self), nullcontext() if solver is None else use_solver(solver):
            waveform, log_det = self._generate(z, condition, lengths)
        return waveform, within(_log_normal(z), lengths).sum(1) - log_det

    def _scaled(
        self, z: Float[Tensor, "batch samples"], temperature: Temperature, condition: Condition
    ) -> Float[Tensor, "batch samples"]:
        """Standard normal latents at a temperature."""
        if isinstance(temperature, tuple):
            raise UserError(f"{type(self).__name__} does not tell voiced from unvoiced speech: give one temperature")
        if not temperature > 0:
            raise UserError(f"temperature must be greater than 0, got {temperature}")
        return temperature * z

    def _generate(
        self, z: Float[Tensor, "batch samples"], condition: Condition, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, " batch"]]:
        """Latents → waveform, and its log-determinant."""
        return self.bijection.inverse(z, self.context(z, condition, lengths))

    # ------------------------------------------------------------------------------------------------ conditions

    def context(
        self, waveform: Float[Tensor, "batch samples"], condition: Condition, lengths: Tensor | None = None
    ) -> Any:
        """Context of a waveform, as the bijection takes it.

        Args:
            waveform: samples or latents; only their number matters.
            condition: mel spectrograms and speakers.
            lengths: samples of each waveform; None if all are full.

        Raises:
            UserError: for a condition that is missing, superfluous, or does not fit the waveform.
        """
        require_tensor("waveform", waveform)
        self.check(condition, len(waveform), waveform.shape[1], lengths)
        return self._context(waveform, condition, None if lengths is None else lengths.to(waveform.device))

    def check(self, condition: Condition, batch: int, samples: int, lengths: Tensor | None = None) -> None:
        """Refuses conditions that do not fit ``batch`` waveforms of ``samples`` samples, or the model.

        A model that was trained also refuses mel spectrograms of other settings, see `TrainingMels`.

        Raises:
            UserError: if they do not fit.
        """
        mel, speaker = condition.mel, condition.speaker
        for name, given in (("mel", mel), ("speaker", speaker), ("lengths", lengths)):
            if given is not None:
                require_tensor(name, given)
        if not samples:
            raise UserError("a waveform without samples has no density: leave it out")
        if lengths is not None and lengths.shape != (batch,):
            raise UserError(f"expected the lengths of {batch} waveforms, got {tuple(lengths.shape)}")
        # Values are not looked at while they are traced.
        if (
            lengths is not None
            and not torch.compiler.is_compiling()
            and not 1 <= lengths.min() <= lengths.max() <= samples
        ):
            raise UserError(
                f"lengths must lie between 1 and the {samples} samples of the batch, got {lengths.tolist()}"
            )
        for name, part, wanted in (("mel", mel, self.conditional), ("speaker", speaker, self.speakers > 0)):
            if (part is not None) != wanted:
                which = "is conditional on" if wanted else "was trained without"
                raise UserError(f"this model {which} {name}: {'give it' if wanted else 'leave it out'}")
            if part is not None and len(part) not in (1, batch):
                raise UserError(f"expected {name} of each of {batch} waveforms, got {len(part)}")
        fitting = self.spec.frames(samples), self.spec.frames(samples) + 2 * self.surroundings
        if mel is not None and (mel.shape[1] != self.spec.bands or mel.shape[-1] not in fitting):
            raise UserError(
                f"the mel spectrogram of {samples} samples has {self.spec.bands} bands and {self.spec.frames(samples)} "
                f"frames, got {mel.shape[1]} and {mel.shape[-1]}: compute it with the model's settings"
            )
        # Data of a training step were checked by the settings of their store.
        traced = self.training or torch.compiler.is_compiling() or is_transformed()
        if mel is not None and self.training_mels is not None and not traced:
            self.training_mels.check(mel)


def temperature_pair(temperature: float, unvoiced: float | None) -> Temperature:
    """One temperature, or one for voiced and one for unvoiced speech where the latter is given."""
    return temperature if unvoiced is None else (temperature, unvoiced)


def within(
    values: Float[Tensor, "batch samples"], lengths: Int[Tensor, " batch"] | None
) -> Float[Tensor, "batch samples"]:
    """Values with zeros after the end of each waveform."""
    if lengths is None:
        return values
    return values * (torch.arange(values.shape[1], device=values.device) < lengths.to(values.device)[:, None])


def _log_normal(z: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch samples"]:
    return -0.5 * (z.square() + math.log(2 * math.pi))


def _repeated(part: Tensor | None, count: int) -> Tensor | None:
    return part if part is None or len(part) != 1 else part.expand(count, *part.shape[1:])
