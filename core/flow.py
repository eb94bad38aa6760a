"""A flow: a base density seen through a bijection."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from math import prod
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from arflows.core.bases import Base
from arflows.core.bijections.base import Bijection
from arflows.core.bijections.normalization import initialize
from arflows.core.dequantization import Dequantizer
from arflows.core.inversion import Solver, use_solver
from arflows.core.runtime.errors import UserError


class Flow(nn.Module):
    """The density p(x) = p_base(z) · |det ∂z/∂x| with z = bijection(x), to score and to sample.

    Rezende & Mohamed, "Variational inference with normalizing flows", 2015 (arXiv:1505.05770), equation 5; for a
    survey Papamakarios et al. 2021 (arXiv:1912.02762).

    With a dequantizer the data are integers, and `log_prob` is a lower bound of the log-probability of the integers.

    Args:
        base: density of the latents.
        bijection: map from data (``forward``) to latents.
        dequantizer: turns integer data into points of the bijection's domain; None for continuous data.
        context_encoder: turns what the user conditions on (class labels, say) into the (batch, features) context that
            base and bijection take; None passes it on as it is.
    """

    has_round_trip = True
    """Whether an example has a point in latent space that gives it back, so that `round_trip_error` can be watched."""

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
        """What `log_prob` is: a density of continuous data, or a bound on (or exactly) the probability of integers."""
        return "density" if self.dequantizer is None else self.dequantizer.likelihood

    @property
    def device(self) -> torch.device:
        """Where the flow computes."""
        return self.base.origin.device

    @property
    def dims(self) -> int:
        """Number of variables of an example, by which bits per dimension divide."""
        return prod(self.base.shape)

    def log_prob(
        self, x: Shaped[Tensor, "batch *event"], context: Shaped[Tensor, "batch ..."] | None = None
    ) -> Float[Tensor, " batch"]:
        """Log-likelihood of each example in nats; `likelihood` says of which kind.

        With a dequantizer every call draws new noise from torch's global generator.
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
        """Draws ``count`` examples, in evaluation mode and without gradients.

        Args:
            count: how many.
            context: what to condition on, one row for each example.
            temperature: multiplies the base density's standard deviation.
            generator: source of randomness; a CPU generator gives the same latents on every device.
            solver: how autoregressive parts are inverted; None for the solver in force, `Sequential` by default.

        Raises:
            InversionError: if the solver finds no solution.
        """
        with self._evaluating():
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
        """Draws examples and says how likely the model holds each of them, in nats.

        The figure is what `log_prob` returns for the example, of the model at temperature 1 whatever the temperature of
        the samples, so that samples and data compare. Arguments are those of `sample`.
        """
        with self._evaluating():
            z, encoded = self._latents(count, context, temperature, generator)
            y, log_det = self._inverse(z, encoded, solver)
            if self.dequantizer is None:
                return y, self.base.log_prob(z, encoded) - log_det
            x = self.dequantizer.quantize(y)
            return x, self.log_prob(x, context)

    def encode(
        self, x: Shaped[Tensor, "batch *event"], context: Shaped[Tensor, "batch ..."] | None = None
    ) -> Float[Tensor, "batch *latent"]:
        """Data → latent, in evaluation mode; integers enter as the middles of their cells."""
        with self._evaluating():
            y = x if self.dequantizer is None else self.dequantizer.midpoint(x)
            return self.bijection(y, self._encode_context(context))[0]

    def decode(
        self, z: Float[Tensor, "batch *latent"], context: Shaped[Tensor, "batch ..."] | None = None
    ) -> Shaped[Tensor, "batch *event"]:
        """Latent → data, in evaluation mode."""
        with self._evaluating():
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
        with self._evaluating():
            y = x if self.dequantizer is None else self.dequantizer.midpoint(x)
            encoded = self._encode_context(context)
            back, _ = self.bijection.inverse(self.bijection(y, encoded)[0], encoded)
        return (back - y).abs().flatten(1).amax(1)

    def initialize(self, x: Shaped[Tensor, "batch *event"], context: Shaped[Tensor, "batch ..."] | None = None) -> None:
        """Initialises the layers that start from data (`ActNorm`) by one batch; what was initialised before stays."""
        initialize(self, lambda: self.log_prob(x, context))

    def _latents(
        self, count: int, context: Tensor | None, temperature: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """Draws from the base; gives the encoded context with it."""
        if count < 1:
            raise UserError(f"the number of samples must be at least 1, got {count}")
        if not temperature > 0:
            raise UserError(f"temperature must be greater than 0, got {temperature}")
        encoded = self._encode_context(context)
        return self.base.sample(count, encoded, temperature=temperature, generator=generator), encoded

    def _inverse(self, z: Tensor, encoded: Tensor | None, solver: Solver | None) -> tuple[Tensor, Tensor]:
        """Latent → data by a solver, or by the one in force."""
        with nullcontext() if solver is None else use_solver(solver):
            return self.bijection.inverse(z, encoded)

    def _encode_context(self, context: Tensor | None) -> Tensor | None:
        if self.context_encoder is None or context is None:
            return context
        return self.context_encoder(context)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode for a while: statistics of a batch must not enter what is not training."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)
