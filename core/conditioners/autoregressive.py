"""What a conditioner needs to be autoregressive: a parallel pass, and a stream that takes one site at a time."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    from arflows.core.bijections.elementwise import Elementwise


class Stream(ABC):
    """A conditioner at work on a generation: what it keeps of the sites so far, to say what comes next.

    A *site* is what is generated at once: a variable, a token, a row of samples. Two ways of going on may not be mixed
    in one stream: `step` after `step`, or blocks, each by any number of `sweep` and one `commit`.

    Attributes:
        computed: for how many sites parameters were computed so far, in units of what a pass computes a site for.
    """

    def __init__(self) -> None:
        self.position = 0
        self.computed = 0

    @abstractmethod
    def step(self, previous: Float[Tensor, "batch *site"] | None) -> Float[Tensor, "batch *site parameters"]:
        """Takes the value of the site before (None at the first) and returns the parameters of the next."""

    def generate(
        self, elementwise: "Elementwise", z: Float[Tensor, "batch sites *site"]
    ) -> tuple[Float[Tensor, "batch sites *site"], Float[Tensor, "batch sites *site"]]:
        """Latent → data for all sites, by a `step` for each; streams override it by a faster loop for maps they know.

        Args:
            elementwise: The map of single elements.
            z: Latents.

        Returns:
            x, and the log-derivative of x by z element by element.
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
        """The parameters of the next sites, given a guess at their values; nothing is committed."""

    @abstractmethod
    def commit(self, values: Float[Tensor, "batch sites *site"]) -> None:
        """Takes the values of the next sites."""


class AutoregressiveConditioner(nn.Module, ABC):
    """A network whose parameters for a site depend on the sites before it alone, and on the context.

    Sites lie along the first axis after the batch, in the order of generation.

    Args:
        parameter_count: parameters of an element.
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
        """Computes the parameters of all sites at once."""

    def stream(self, like: Float[Tensor, "batch sites *site"], context: Tensor | None = None) -> Stream:
        """Starts a generation.

        Args:
            like: a tensor of the shape, type and device that the values will have.
            context: what to condition on, one row for each example.

        Returns:
            A stream; this general one takes a pass of the network at every call, conditioners override it by better.
        """
        return RecomputedStream(self, like, context)

    def examples_at_once(self, like: Float[Tensor, "batch sites *site"]) -> int:
        """How many examples a stream on a CPU had better take at a time; all of them by default."""
        return max(1, len(like))


def check_context(context: Tensor | None, features: int) -> None:
    """Raises ValueError for a missing context, or one of another width than ``features``."""
    if features and (context is None or context.shape[1] != features):
        got = "none" if context is None else f"one with {context.shape[1]}"
        raise ValueError(f"the conditioner needs a context with {features} features, got {got}")


class RecomputedStream(Stream):
    """The stream of any autoregressive conditioner, and the yardstick of the others: a pass over all sites a call."""

    def __init__(self, conditioner: AutoregressiveConditioner, like: Tensor, context: Tensor | None) -> None:
        super().__init__()
        self.conditioner = conditioner
        self.context = context
        self.values = torch.zeros_like(like)

    def step(self, previous: Tensor | None) -> Tensor:
        """Takes the value of the site before (None at the first) and returns the parameters of the next."""
        if previous is not None:
            self.values[:, self.position] = previous
            self.position += 1
        return self._parameters(self.position, self.position + 1)[:, 0]

    def sweep(self, guess: Tensor) -> Tensor:
        """The parameters of the next sites, given a guess at their values."""
        stop = self.position + guess.shape[1]
        self.values[:, self.position : stop] = guess
        return self._parameters(self.position, stop)

    def commit(self, values: Tensor) -> None:
        """Takes the values of the next sites."""
        stop = self.position + values.shape[1]
        self.values[:, self.position : stop] = values
        self.position = stop

    def _parameters(self, start: int, stop: int) -> Tensor:
        self.computed += self.values.shape[1]
        return self.conditioner(self.values, self.context)[:, start:stop]
