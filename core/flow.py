"""Interface of all models with a likelihood, and flows of a base density and a bijection."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import prod
from typing import Any, Literal, NoReturn, Self

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from arflows.core.bases import Base
from arflows.core.bijections.base import Bijection, refuse_half_precision
from arflows.core.bijections.normalization import initialize
from arflows.core.dequantization import Dequantizer
from arflows.core.inversion import Solver, use_solver
from arflows.core.runtime.errors import UserError


class Flow(nn.Module, ABC):
    """Model that computes likelihoods of examples and draws examples.

    Training, likelihood estimates and the command line use only this interface. Conditions (a context, class labels, a
    mel spectrogram) are further arguments, which each flow defines.

    Every flow has `log_prob`, `sample`, `likelihood`, `dims`, `device`, `dtype` and `initialize`. Two parts are
    optional: latents (`encode`, `decode`, `round_trip_error`, see `has_latents`) and `sample_with_log_prob` (see
    `scores_samples`). A flow offers a part by defining its methods; the methods of this class raise `UserError`.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the parameters; ``to``, ``half``, ``cuda`` and the like call this method."""
        refuse_half_precision(fn)
        return super()._apply(fn, recurse)

    @abstractmethod
    def log_prob(self, x: Any, /, *conditions: Any, **options: Any) -> Float[Tensor, " batch"]:
        """Return the log-likelihood of each example in nats; `likelihood` names its kind.

        Args:
            x: examples: a tensor of them, or what `sample` returns.
            *conditions: conditions, one row for each example.
            **options: options of the flow.
        """

    def forward(self, *arguments: Any, **options: Any) -> Float[Tensor, " batch"]:
        """Return `log_prob`, for tools that call a module."""
        return self.log_prob(*arguments, **options)

    @abstractmethod
    def sample(self, count: int, /, *conditions: Any, **options: Any) -> Tensor | Sequence[Any]:
        """Draw examples, in evaluation mode and without gradients.

        Args:
            count: number of examples.
            *conditions: conditions, one row for each example.
            **options: options of the flow.

        Returns:
            ``count`` examples, in a form that `log_prob` takes.
        """

    def sample_with_log_prob(
        self, count: int, /, *conditions: Any, **options: Any
    ) -> tuple[Tensor | Sequence[Any], Float[Tensor, " count"]]:
        """Draw examples and return `log_prob` of each; arguments as for `sample`.

        Raises:
            UserError: if the flow does not offer it, see `scores_samples`.
        """
        self._not_offered("sample_with_log_prob")

    def encode(self, x: Any, /, *conditions: Any, **options: Any) -> Float[Tensor, "batch *latent"]:
        """Map data → latent in evaluation mode; arguments as for `log_prob`.

        Raises:
            UserError: if the flow has no latents, see `has_latents`.
        """
        self._not_offered("encode")

    def decode(self, z: Float[Tensor, "batch *latent"], /, *conditions: Any, **options: Any) -> Tensor | Sequence[Any]:
        """Map latent → data in evaluation mode; conditions as for `log_prob`.

        Raises:
            UserError: if the flow has no latents, see `has_latents`.
        """
        self._not_offered("decode")

    def round_trip_error(self, x: Any, /, *conditions: Any, **options: Any) -> Float[Tensor, " batch"]:
        """Return the largest difference of each example from its decoded latents; arguments as for `log_prob`.

        Raises:
            UserError: if the flow has no latents, see `has_latents`.
        """
        self._not_offered("round_trip_error")

    @property
    def has_latents(self) -> bool:
        """True if each example has a point in latent space: `encode`, `decode` and `round_trip_error` exist."""
        return type(self).encode is not Flow.encode

    @property
    def scores_samples(self) -> bool:
        """True if a sample has a log-likelihood that `sample_with_log_prob` can give."""
        return type(self).sample_with_log_prob is not Flow.sample_with_log_prob

    @property
    @abstractmethod
    def likelihood(self) -> Literal["exact", "density", "bound"]:
        """Kind of `log_prob`: the log-probability of discrete data, a density, or a lower bound of the former."""

    @property
    def dims(self) -> int | None:
        """Number of variables of an example, for bits per dimension; None if examples differ in it."""
        return None

    @property
    def device(self) -> torch.device:
        """Device of the parameters, on which the flow computes."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters, in which the flow computes."""
        return next(self.parameters()).dtype

    def initialize(self, x: Any, /, *conditions: Any, **options: Any) -> None:
        """Initialise the layers that start from data (`ActNorm`, `Standardize`) by one batch; others stay as they are.

        Args:
            x: examples.
            *conditions: as for `log_prob`.
            **options: as for `log_prob`.
        """
        initialize(self, lambda: self.log_prob(x, *conditions, **options))

    def _not_offered(self, name: str) -> NoReturn:
        flag = "scores_samples" if name == "sample_with_log_prob" else "has_latents"
        raise UserError(f"{type(self).__name__} has no {name}: check flow.{flag} before calling it")


class BijectiveFlow(Flow):
    """Flow with the density p(x) = p_base(z) · |det ∂z/∂x|, where z = bijection(x).

    Rezende & Mohamed, "Variational inference with normalizing flows", 2015 (arXiv:1505.05770), equation 5; for a
    survey Papamakarios et al. 2021 (arXiv:1912.02762).

    With a dequantizer the data are integers, and `log_prob` is a lower bound of the log-probability of the integers.

    Args:
        base: density of the latents.
        bijection: map from data (``forward``) to latents.
        dequantizer: map from integer data to points of the bijection's domain; None for continuous data.
        context_encoder: map from the user's conditions (class labels, for example) to the context (batch, features) of
            base and bijection; None for the identity.

    >>> from arflows.core.bases import StandardNormal
    >>> from arflows.core.bijections import ActNorm
    >>> flow = BijectiveFlow(StandardNormal((3,)), ActNorm(3))
    >>> x, log_prob = flow.sample_with_log_prob(5)
    >>> torch.allclose(flow.log_prob(x), log_prob)
    True
    """

    def __init__(
        self,
        base: Base,
        bijection: Bijection,
        dequantizer: Dequantizer | None = None,
        context_encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.bijection = bijection
        self.dequantizer = dequantizer
        self.context_encoder = context_encoder

    @property
    def likelihood(self) -> Literal["exact", "density", "bound"]:
        """Kind of `log_prob`: a density for continuous data, otherwise the kind of the dequantizer."""
        return "density" if self.dequantizer is None else self.dequantizer.likelihood

    @property
    def device(self) -> torch.device:
        """Device of the base, on which the flow computes."""
        return self.base.origin.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the base, in which the flow computes."""
        return self.base.origin.dtype

    @property
    def dims(self) -> int:
        """Number of variables of an example, by which bits per dimension divide."""
        return prod(self.base.shape)

    def log_prob(
        self, x: Shaped[Tensor, "batch *event"], context: Shaped[Tensor, "batch ..."] | None = None
    ) -> Float[Tensor, " batch"]:
        """Return the log-likelihood of each example in nats; `likelihood` names its kind.

        With a dequantizer, every call draws new noise from torch's global generator.
        """
        encoded = self._encode_context(context)
        y, log_cell = (x, 0.0) if self.dequantizer is None else self.dequantizer(x)
        z, log_det = self.bijection(y, encoded)
        return self.base.log_prob(z, encoded) + log_det + log_cell

    @torch.no_grad()
    def sample(
        self,
        count: int,
        context: Shaped[Tensor, "count ..."] | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
    ) -> Shaped[Tensor, "count *event"]:
        """Draw ``count`` examples, in evaluation mode and without gradients.

        Args:
            count: number of examples.
            context: context of each example.
            temperature: factor on the standard deviation of the base density.
            generator: source of randomness; a CPU generator gives the same latents on every device.
            solver: solver for autoregressive parts; None for the active solver, `Sequential` by default.

        Raises:
            InversionError: if the solver finds no solution.
        """
        with evaluating(self):
            z, encoded = self._latents(count, context, temperature, generator)
            y, _ = self._inverse(z, encoded, solver)
        return y if self.dequantizer is None else self.dequantizer.quantize(y)

    @torch.no_grad()
    def sample_with_log_prob(
        self,
        count: int,
        context: Shaped[Tensor, "count ..."] | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
    ) -> tuple[Shaped[Tensor, "count *event"], Float[Tensor, " count"]]:
        """Draw examples and return `log_prob` of each, in nats; arguments as for `sample`.

        The log-likelihood is that of the model at temperature 1 at any temperature of the samples. With a dequantizer
        it is computed with noise of its own, as by a call of `log_prob`.
        """
        with evaluating(self):
            z, encoded = self._latents(count, context, temperature, generator)
            y, log_det = self._inverse(z, encoded, solver)
            if self.dequantizer is None:
                return y, self.base.log_prob(z, encoded) - log_det
            x = self.dequantizer.quantize(y)
            return x, self.log_prob(x, context)

    def encode(
        self, x: Shaped[Tensor, "batch *event"], context: Shaped[Tensor, "batch ..."] | None = None
    ) -> Float[Tensor, "batch *latent"]:
        """Map data → latent in evaluation mode; integers are mapped to the midpoints of their cells first."""
        with evaluating(self):
            y = x if self.dequantizer is None else self.dequantizer.midpoint(x)
            return self.bijection(y, self._encode_context(context))[0]

    def decode(
        self, z: Float[Tensor, "batch *latent"], context: Shaped[Tensor, "batch ..."] | None = None
    ) -> Shaped[Tensor, "batch *event"]:
        """Map latent → data in evaluation mode."""
        with evaluating(self):
            y, _ = self.bijection.inverse(z, self._encode_context(context))
        return y if self.dequantizer is None else self.dequantizer.quantize(y)

    @torch.no_grad()
    def round_trip_error(
        self, x: Shaped[Tensor, "batch *event"], context: Shaped[Tensor, "batch ..."] | None = None
    ) -> Float[Tensor, " batch"]:
        """Largest |inverse(forward(y)) − y| of each example, y being what enters the bijection.

        With a dequantizer y lies in [0, 1], so an error below half a cell (1/512 for 8-bit pixels) reconstructs every
        integer.
        """
        with evaluating(self):
            y = x if self.dequantizer is None else self.dequantizer.midpoint(x)
            encoded = self._encode_context(context)
            back, _ = self.bijection.inverse(self.bijection(y, encoded)[0], encoded)
        return (back - y).abs().flatten(1).amax(1)

    def _latents(
        self, count: int, context: Tensor | None, temperature: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """Latents drawn from the base, and the encoded context."""
        if count < 1:
            raise UserError(f"the number of samples must be at least 1, got {count}")
        if not temperature > 0:
            raise UserError(f"temperature must be greater than 0, got {temperature}")
        encoded = self._encode_context(context)
        return self.base.sample(count, encoded, temperature=temperature, generator=generator), encoded

    def _inverse(self, z: Tensor, encoded: Tensor | None, solver: Solver | None) -> tuple[Tensor, Tensor]:
        """Latent → data by a solver, or by the active one."""
        with nullcontext() if solver is None else use_solver(solver):
            return self.bijection.inverse(z, encoded)

    def _encode_context(self, context: Tensor | None) -> Tensor | None:
        if self.context_encoder is None or context is None:
            return context
        return self.context_encoder(context)


def require_tensor(name: str, values: object) -> None:
    """Raise `UserError` unless ``values`` is a tensor, such as for a NumPy array or a list."""
    if not isinstance(values, Tensor):
        raise UserError(f"{name} is a {type(values).__name__}: give a tensor, as by torch.as_tensor({name})")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each module is in the mode that it was in before.

    Parts that are in evaluation mode already (frozen ones, say) are not touched, and nothing is if all of them are.
    """
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
