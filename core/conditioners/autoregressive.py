"""Autoregressive conditioners: a parallel pass, and a stream that computes one site at a time."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    from arflows.core.bijections.elementwise import Elementwise


class Stream(ABC):
    """State of an autoregressive conditioner during generation.

    A *site* is a unit of generation: a variable, a token, a row of samples. A stream advances either by a `step` for
    each site, or by blocks of sites with any number of `sweep` calls and one `commit` each. The two must not be mixed.

    Attributes:
        position: number of sites whose values are known.
        computed: number of sites for which parameters were computed so far, repeated computations included.
    """

    def __init__(self) -> None:
        self.position = 0
        self.computed = 0

    @abstractmethod
    def step(self, previous: Float[Tensor, "batch *site"] | None) -> Float[Tensor, "batch *site parameters"]:
        """Take the value of the previous site (None at the first) and return the parameters of the next one."""

    def generate(
        self, elementwise: "Elementwise", z: Float[Tensor, "batch sites *site"]
    ) -> tuple[Float[Tensor, "batch sites *site"], Float[Tensor, "batch sites *site"]]:
        """Map latent → data for all sites, by a `step` for each; streams override it by faster loops for some maps.

        Args:
            elementwise: the map of single elements.
            z: latents, sites in the order of generation.

        Returns:
            x and the elementwise log-derivative ∂x/∂z.
        """
        x: Tensor | None = None
        values, log_derivatives = [], []
        for z_site in z.movedim(1, 0).contiguous().unbind(0):
            x, log_derivative = elementwise.inverse(z_site, self.step(x).to(z.dtype))
            values.append(x)
            log_derivatives.append(log_derivative)
        return torch.stack(values, 1), torch.stack(log_derivatives, 1)

    @abstractmethod
    def sweep(self, guess: Float[Tensor, "batch sites *site"]) -> Float[Tensor, "batch sites *site parameters"]:
        """Return the parameters of the next sites for a guess of their values, without advancing the stream."""

    @abstractmethod
    def commit(self, values: Float[Tensor, "batch sites *site"]) -> None:
        """Take the values of the next sites and advance the stream."""


class AutoregressiveConditioner(nn.Module, ABC):
    """Network whose parameters for a site depend only on the sites before it and on the context.

    The first axis after the batch is that of the sites, in the order of generation.

    Args:
        parameter_count: number of parameters of an element.
        context_features: size of the context; 0 for none.
    """

    def __init__(self, parameter_count: int, context_features: int = 0) -> None:
        super().__init__()
        self.parameter_count = parameter_count
        self.context_features = context_features

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "batch sites *site"], context: Float[Tensor, "batch context"] | None = None
    ) -> Float[Tensor, "batch sites *site parameters"]:
        """Compute the parameters of all sites in one pass."""

    def stream(self, like: Float[Tensor, "batch sites *site"], context: Tensor | None = None) -> Stream:
        """Start a generation.

        Args:
            like: a tensor of the shape, dtype and device of the values to generate.
            context: context of each example.

        Returns:
            A stream. This default does a whole pass of the network at every call; subclasses have faster ones.
        """
        return RecomputedStream(self, like, context)

    def examples_at_once(self, like: Float[Tensor, "batch sites *site"]) -> int:
        """Return the number of examples that a stream on a CPU handles best at a time; all of them by default."""
        return max(1, len(like))


def check_context(context: Tensor | None, features: int) -> None:
    """Raise ValueError if the context is missing or does not have ``features`` features."""
    if features and (context is None or context.shape[1] != features):
        got = "none" if context is None else f"one with {context.shape[1]}"
        raise ValueError(f"the conditioner needs a context with {features} features, got {got}")


class RecomputedStream(Stream):
    """Stream of any autoregressive conditioner, with a pass over all sites at every call; the reference for others."""

    def __init__(self, conditioner: AutoregressiveConditioner, like: Tensor, context: Tensor | None) -> None:
        super().__init__()
        self.conditioner = conditioner
        self.context = context
        self.values = torch.zeros_like(like)

    def step(self, previous: Tensor | None) -> Tensor:
        """Take the value of the previous site (None at the first) and return the parameters of the next one."""
        if previous is not None:
            self.values[:, self.position] = previous
            self.position += 1
        return self._parameters(self.position, self.position + 1)[:, 0]

    def sweep(self, guess: Tensor) -> Tensor:
        """Return the parameters of the next sites for a guess of their values."""
        stop = self.position + guess.shape[1]
        self.values[:, self.position : stop] = guess
        return self._parameters(self.position, stop)

    def commit(self, values: Tensor) -> None:
        """Take the values of the next sites and advance the stream."""
        stop = self.position + values.shape[1]
        self.values[:, self.position : stop] = values
        self.position = stop

    def _parameters(self, start: int, stop: int) -> Tensor:
        self.computed += self.values.shape[1]
        return self.conditioner(self.values, self.context)[:, start:stop]
