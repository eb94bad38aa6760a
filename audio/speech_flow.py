"""Interface of flows over waveforms, optionally conditioned on mel spectrograms and speakers."""

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
"""Factor of the latents' standard deviation, or a pair of factors for voiced and unvoiced speech."""


class SpeechFlow(Flow, Pretrained):
    """Base class of flows over waveforms in [−1, 1] with one standard normal latent per sample.

    `log_prob` is the log-density in nats of a waveform as a vector in [−1, 1], in the convention of the literature;
    divide it by the number of samples for the published nats per sample.

    Waveforms of a batch may differ in length. Missing samples are treated like the zero padding at a border, so the
    density of each waveform equals that of the waveform alone.

    Subclasses set ``bijection`` and implement `_context`, `windows` and, for exact streaming, `continuation`.

    Args:
        spec: settings of the mel spectrograms.
        conditional: True if mel spectrograms are given; otherwise only the sample rate of ``spec`` is used.
        speakers: number of speakers; 0 for a model without.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Constructor arguments of named model sizes."""
    bijection: SampleBijection
    height: int = 1
    """Samples per column of a folded waveform; parts of a waveform begin at a column."""
    lead: int = 0
    """Frames before a training segment that are included but left out of the loss."""
    surroundings: int = 0
    """Mel frames included before the lead and after the end of a training segment."""

    def __init__(self, spec: MelSpec, conditional: bool, speakers: int) -> None:
        super().__init__()
        self.spec = spec
        self.conditional = conditional
        self.speakers = speakers
        self.training_mels = TrainingMels(spec) if conditional else None

    @classmethod
    def from_preset(cls, name: str, **options: Any) -> Self:
        """Build an untrained model of a named size, such as "h16_c64"; ``options`` are other constructor arguments.

        Raises:
            UserError: if the name is unknown.
        """
        if name not in cls.presets:
            raise UserError(f"there is no preset {name!r}: choose {', '.join(cls.presets)}")
        return cls(**{**cls.presets[name], **options})

    @property
    def frame_step(self) -> int:
        """Smallest number of mel frames that fill whole columns; parts of a spectrogram begin at its multiples."""
        return math.lcm(self.spec.hop, self.height) // self.spec.hop

    @property
    def likelihood(self) -> Literal["exact", "density", "bound"]:
        """Kind of the likelihood: a density of waveforms."""
        return "density"

    @abstractmethod
    def _context(
        self, waveform: Float[Tensor, "batch samples"], condition: Condition, lengths: Int[Tensor, " batch"] | None
    ) -> Any:
        """Return the bijection's context for a waveform of this shape; the condition has been checked."""

    @abstractmethod
    def windows(self, start: int, stop: int, samples: int, context: Any) -> tuple[Window, Window]:
        """Return two windows of a waveform around the samples ``start`` … ``stop`` − 1.

        Changing these samples changes the log-density of the first window by the same amount as that of the whole
        waveform. The second window is smaller and gives an approximate gradient with respect to the samples.

        Args:
            start: first sample.
            stop: sample after the last.
            samples: number of samples of the waveform.
            context: context of the waveform.
        """

    def continuation(self) -> Continuation | None:
        """Return exact incremental synthesis, or None if samples depend on all future frames."""
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
        """Compute the log-density of each waveform in nats.

        Args:
            waveform: samples in [−1, 1]; shorter waveforms are padded with zeros.
            mel: log-mel spectrograms of ⌈samples / hop⌉ frames; for an excerpt of a longer waveform, `surroundings`
                more frames may be given on both sides.
            speaker: index of the speaker of each waveform.
            lengths: samples of each waveform; None if all are full.

        Raises:
            UserError: if a condition is missing, superfluous, or does not fit the waveform.
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
        """Compute the log-density of each sample given those generated before it, in nats.

        It is the log-density of the sample's latent plus the log-derivative of its map; the sum over samples is
        `log_prob`. See `log_prob` for the arguments.
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
        """Map waveforms to latents, in evaluation mode; see `log_prob` for the arguments."""
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
        """Map latents to waveforms, in evaluation mode; see `log_prob` for the conditions."""
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
        """Compute the largest reconstruction error of each waveform; see `log_prob` for the arguments."""
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
        """Draw waveforms, in evaluation mode and without gradients.

        Args:
            count: number of waveforms; None for one per condition.
            mel: log-mel spectrograms to vocode, one per waveform or one for all.
            speaker: index of the speaker of each waveform, or of all.
            samples: length of the waveforms; None for all frames of the mel spectrogram.
            lengths: samples of each waveform, if they differ; the rest is zero.
            temperature: factor of the latents' standard deviation; some flows accept a pair for voiced and unvoiced
                speech.
            generator: random generator; a CPU generator gives the same latents on every device.
            solver: solver that inverts the flow; None for the active solver, `Sequential` by default.

        Raises:
            UserError: if a condition is missing, superfluous or does not fit, or the length is unknown.
            InversionError: if the solver does not converge.
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
        """Draw waveforms, and return the log-density of each in nats, at temperature 1; see `sample`."""
        given = [part for part in (mel, speaker, lengths) if part is not None]
        count = count if count is not None else max((len(part) for part in given), default=1)
        if count < 1:
            raise UserError(f"the number of samples must be at least 1, got {count}")
        if samples is None:
            if mel is None:
                raise UserError("an unconditional model does not know the length of a waveform: give samples")
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
        """Scale standard normal latents by a temperature."""
        if isinstance(temperature, tuple):
            raise UserError(f"{type(self).__name__} does not detect voiced speech: give one temperature")
        if not temperature > 0:
            raise UserError(f"temperature must be greater than 0, got {temperature}")
        return temperature * z

    def _generate(
        self, z: Float[Tensor, "batch samples"], condition: Condition, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "batch samples"], Float[Tensor, " batch"]]:
        """Map latents to waveforms, and return the log-determinant of this direction."""
        return self.bijection.inverse(z, self.context(z, condition, lengths))

    # ------------------------------------------------------------------------------------------------ conditions

    def context(
        self, waveform: Float[Tensor, "batch samples"], condition: Condition, lengths: Tensor | None = None
    ) -> Any:
        """Return the context of a waveform for the bijection.

        Args:
            waveform: samples or latents, of which only the shape matters.
            condition: mel spectrograms and speakers.
            lengths: samples of each waveform; None if all are full.

        Raises:
            UserError: if a condition is missing, superfluous, or does not fit the waveform.
        """
        require_tensor("waveform", waveform)
        self.check(condition, waveform.shape[0], waveform.shape[1], lengths)
        return self._context(waveform, condition, None if lengths is None else lengths.to(waveform.device))

    def check(self, condition: Condition, batch: int, samples: int, lengths: Tensor | None = None) -> None:
        """Check that conditions fit the waveforms and the model.

        Args:
            condition: mel spectrograms and speakers.
            batch: number of waveforms.
            samples: samples of the padded waveforms.
            lengths: samples of each waveform; None if all are full.

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
        # Tracing does not know values.
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
                relation = "is conditional on" if wanted else "was trained without"
                raise UserError(f"this model {relation} {name}: {'give it' if wanted else 'leave it out'}")
            if part is not None and part.shape[0] not in (1, batch):
                raise UserError(f"expected {name} of each of {batch} waveforms, got {part.shape[0]}")
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
    """Return one temperature, or a pair for voiced and unvoiced speech if the latter is given."""
    return temperature if unvoiced is None else (temperature, unvoiced)


def within(
    values: Float[Tensor, "batch samples"], lengths: Int[Tensor, " batch"] | None
) -> Float[Tensor, "batch samples"]:
    """Set values after the end of each waveform to zero."""
    if lengths is None:
        return values
    return values * (torch.arange(values.shape[1], device=values.device) < lengths.to(values.device)[:, None])


def _log_normal(z: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch samples"]:
    return -0.5 * (z.square() + math.log(2 * math.pi))


def _repeated(part: Tensor | None, count: int) -> Tensor | None:
    return part if part is None or part.shape[0] != 1 else part.expand(count, *part.shape[1:])
