"""Base densities: what the latents of a flow are distributed like."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arflows.core.bijections.base import sum_except_batch, zero_log_det
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.noise import Distribution, PerExample


class Base(nn.Module, ABC):
    """A density over latents of one shape.

    Args:
        shape: shape of a latent, without the batch dimension.
    """

    origin: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        # Carries the device and dtype in which to sample.
        self.register_buffer("origin", torch.zeros(()), persistent=False)

    @abstractmethod
    def log_prob(
        self, z: Float[Tensor, "batch *shape"], context: Float[Tensor, "batch features"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Log-density in nats."""

    @abstractmethod
    def sample(
        self,
        count: int,
        context: Float[Tensor, "count features"] | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "count *shape"]:
        """Draws ``count`` latents.

        Args:
            count: how many.
            context: what to condition on, one row for each latent.
            temperature: multiplies the standard deviation; below 1 for samples nearer to the mode.
            generator: source of randomness; a CPU generator gives the same latents on every device, and `PerExample`
                whatever they are drawn together with.
        """

    def _draw(self, distribution: Distribution, count: int, generator: torch.Generator | None) -> Tensor:
        """Noise of the latents' shape, drawn where the generator lives and moved to where the base lives."""
        if isinstance(generator, PerExample):
            return generator.draw(distribution, count, self.shape, self.origin.dtype).to(self.origin.device)
        device = generator.device if generator is not None else self.origin.device
        draw = torch.randn if distribution == "normal" else torch.rand
        noise = draw(count, *self.shape, generator=generator, device=device, dtype=self.origin.dtype)
        return noise.to(self.origin.device)


class StandardNormal(Base):
    """Independent standard normal variables."""

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats."""
        return sum_except_batch(-0.5 * (z.square() + math.log(2 * math.pi)))

    def sample(
        self,
        count: int,
        context: Tensor | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws latents with standard deviation ``temperature``."""
        return temperature * self._draw("normal", count, generator)


class DiagonalNormal(Base):
    """Independent normal variables with learned means and standard deviations, which may depend on a context.

    Starts as the standard normal.

    Args:
        shape: shape of a latent, without the batch dimension.
        context_features: size of the context that mean and log-scale depend on linearly; 0 for none.
    """

    def __init__(self, shape: tuple[int, ...], context_features: int = 0) -> None:
        super().__init__(shape)
        self.mean = nn.Parameter(torch.zeros(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.from_context = None
        if context_features:
            self.from_context = nn.Linear(context_features, 2 * self.mean.numel(), bias=False)
            nn.init.zeros_(self.from_context.weight)

    def _mean_and_log_scale(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.from_context is None:
            return self.mean, self.log_scale
        if context is None:
            raise ValueError(f"the base density needs a context with {self.from_context.in_features} features")
        shifts = self.from_context(context).to(self.mean.dtype).unflatten(1, (2, *self.shape))
        return self.mean + shifts[:, 0], self.log_scale + shifts[:, 1]

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats."""
        mean, log_scale = self._mean_and_log_scale(context)
        standardized = (z - mean) * (-log_scale).exp()
        return sum_except_batch(-0.5 * (standardized.square() + math.log(2 * math.pi)) - log_scale)

    def sample(
        self,
        count: int,
        context: Tensor | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws latents with ``temperature`` times the learned standard deviation."""
        mean, log_scale = self._mean_and_log_scale(context)
        return mean + temperature * log_scale.exp() * self._draw("normal", count, generator)


class Uniform(Base):
    """Independent variables, uniform on [0, 1]; log-density −∞ outside."""

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats: 0 inside the unit cube."""
        inside = ((z >= 0) & (z <= 1)).flatten(1).all(1)
        return zero_log_det(z).masked_fill(~inside, -math.inf)

    def sample(
        self,
        count: int,
        context: Tensor | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws latents.

        Raises:
            UserError: for a temperature other than 1, which a uniform density has no notion of.
        """
        if temperature != 1.0:
            raise UserError(f"temperature={temperature} has no meaning for a uniform base density; leave it at 1")
        return self._draw("uniform", count, generator)
