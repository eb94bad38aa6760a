"""Base densities: the distributions of the latents of a flow."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arflows.core.bijections.base import sum_except_batch, zero_log_det
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.noise import Distribution, PerExample


class Base(nn.Module, ABC):
    """Density over latents of a fixed shape.

    Args:
        shape: shape of a latent, without the batch dimension.
    """

    origin: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        # Device and dtype of samples.
        self.register_buffer("origin", torch.zeros(()), persistent=False)

    @abstractmethod
    def log_prob(
        self, z: Float[Tensor, "batch *shape"], context: Float[Tensor, "batch features"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Return the log-density of each latent in nats."""

    @abstractmethod
    def sample(
        self,
        count: int,
        context: Float[Tensor, "count features"] | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "count *shape"]:
        """Draw ``count`` latents.

        Args:
            count: number of latents.
            context: context of each latent.
            temperature: factor on the standard deviation; below 1 for samples nearer to the mode.
            generator: source of randomness. A CPU generator gives the same latents on every device, and a `PerExample`
                gives latents that do not depend on the others in their batch.
        """

    def _draw(self, distribution: Distribution, count: int, generator: torch.Generator | None) -> Tensor:
        """Draw noise of the latents' shape on the generator's device and move it to the base's."""
        if isinstance(generator, PerExample):
            return generator.draw(distribution, count, self.shape, self.origin.dtype).to(self.origin.device)
        device = generator.device if generator is not None else self.origin.device
        draw = torch.randn if distribution == "normal" else torch.rand
        noise = draw(count, *self.shape, generator=generator, device=device, dtype=self.origin.dtype)
        return noise.to(self.origin.device)


class StandardNormal(Base):
    """Independent standard normal variables.

    >>> base = StandardNormal((3,))
    >>> base.log_prob(torch.zeros(2, 3))
    tensor([-2.7568, -2.7568])
    >>> base.sample(5).shape
    torch.Size([5, 3])
    """

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the log-density of each latent in nats."""
        return sum_except_batch(-0.5 * (z.square() + math.log(2 * math.pi)))

    def sample(
        self,
        count: int,
        context: Tensor | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw latents with standard deviation ``temperature``."""
        return temperature * self._draw("normal", count, generator)


class DiagonalNormal(Base):
    """Independent normal variables with learned means and standard deviations; the initial ones are 0 and 1.

    Args:
        shape: shape of a latent, without the batch dimension.
        context_features: size of a context that adds a linear function to mean and log-scale; 0 for none.

    >>> DiagonalNormal((3,), context_features=2).sample(5, torch.randn(5, 2)).shape
    torch.Size([5, 3])
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
        """Return the log-density of each latent in nats."""
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
        """Draw latents with ``temperature`` times the learned standard deviation."""
        mean, log_scale = self._mean_and_log_scale(context)
        return mean + temperature * log_scale.exp() * self._draw("normal", count, generator)


class Uniform(Base):
    """Independent variables, uniform on [0, 1]; log-density −∞ outside.

    >>> Uniform((2,)).log_prob(torch.tensor([[0.2, 0.7], [0.2, 1.5]]))
    tensor([0., -inf])
    """

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the log-density of each latent in nats: 0 inside the unit cube."""
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
        """Draw latents.

        Raises:
            UserError: if the temperature is not 1, which a uniform density does not support.
        """
        if temperature != 1.0:
            raise UserError(f"temperature={temperature} has no meaning for a uniform base density; leave it at 1")
        return self._draw("uniform", count, generator)
