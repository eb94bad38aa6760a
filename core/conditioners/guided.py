"""Classifier-free guidance of a conditioner."""

import torch
from jaxtyping import Float
from torch import Tensor

from arflows.core.conditioners.autoregressive import AutoregressiveConditioner, Stream, check_context


class Guided(AutoregressiveConditioner):
    """θ = θ(x, c) + w · (θ(x, c) − θ(x, ∅)): parameters pushed away from those of the unconditional model.

    Ho & Salimans 2022 (arXiv:2207.12598), equation 6; for autoregressive flows Zhai et al. 2024 (arXiv:2412.06329). The
    result is a map of its own: it makes samples clearer, and its density is not that of the model.

    Args:
        conditioner: the conditioner to guide.
        weight: w; 0 changes nothing.
    """

    def __init__(self, conditioner: AutoregressiveConditioner, weight: float) -> None:
        super().__init__(conditioner.parameter_count, 2 * conditioner.context_features)
        self.conditioner = conditioner
        self.weight = weight

    def forward(
        self, x: Float[Tensor, "batch sites *site"], context: Float[Tensor, "batch context"] | None = None
    ) -> Float[Tensor, "batch sites *site parameters"]:
        """Computes the parameters of all sites at once.

        Args:
            x: values of the sites.
            context: for each example the context c, followed by the one that stands for none.
        """
        return self.guided(self.conditioner(torch.cat([x, x]), self._stacked(context)))

    def stream(self, like: Tensor, context: Tensor | None = None) -> Stream:
        """Starts a generation, with and without the context side by side."""
        return _GuidedStream(self, self.conditioner.stream(torch.cat([like, like]), self._stacked(context)))

    def examples_at_once(self, like: Tensor) -> int:
        """Half as many as without guidance."""
        return max(1, self.conditioner.examples_at_once(torch.cat([like, like])) // 2)

    def guided(self, parameters: Float[Tensor, "both *rest"]) -> Float[Tensor, "batch *rest"]:
        """Combines the parameters with the context, in the first half of the batch, with those without."""
        given, without = parameters.chunk(2)
        return given + self.weight * (given - without)

    def _stacked(self, context: Tensor | None) -> Tensor | None:
        check_context(context, self.context_features)
        return None if context is None else torch.cat(context.chunk(2, 1))


class _GuidedStream(Stream):
    def __init__(self, conditioner: Guided, both: Stream) -> None:
        super().__init__()
        self.conditioner = conditioner
        self.both = both

    def step(self, previous: Tensor | None) -> Tensor:
        doubled = None if previous is None else torch.cat([previous, previous])
        return self._guided(self.both.step(doubled))

    def sweep(self, guess: Tensor) -> Tensor:
        return self._guided(self.both.sweep(torch.cat([guess, guess])))

    def commit(self, values: Tensor) -> None:
        self.both.commit(torch.cat([values, values]))
        self.computed = self.both.computed

    def _guided(self, parameters: Tensor) -> Tensor:
        self.computed = self.both.computed
        return self.conditioner.guided(parameters)
