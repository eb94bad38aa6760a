"""Classifier-free guidance of a conditioner."""

import torch
from jaxtyping import Float
from torch import Tensor

from arflows.core.conditioners.autoregressive import AutoregressiveConditioner, Stream, check_context


class Guided(AutoregressiveConditioner):
    """θ = θ(x, c) + w · (θ(x, c) − θ(x, ∅)): parameters pushed away from those of the unconditional model.

    Ho & Salimans 2022 (arXiv:2207.12598), equation 6; for autoregressive flows Zhai et al. 2024 (arXiv:2412.06329). The
    guided map gives clearer samples, but its density is not that of the model.

    Args:
        conditioner: the conditioner to guide.
        weight: guidance weight w; 0 for no guidance.

    >>> from arflows.core.conditioners import CausalTransformer
    >>> network = CausalTransformer(sites=3, channels=2, parameter_count=2, width=8, heads=2, context_features=4)
    >>> guided = Guided(network, weight=0.5)
    >>> guided(torch.randn(5, 3, 2), torch.randn(5, 8)).shape
    torch.Size([5, 3, 2, 2])
    """

    def __init__(self, conditioner: AutoregressiveConditioner, weight: float) -> None:
        super().__init__(conditioner.parameter_count, 2 * conditioner.context_features)
        self.conditioner = conditioner
        self.weight = weight

    def forward(
        self, x: Float[Tensor, "batch sites *site"], context: Float[Tensor, "batch context"] | None = None
    ) -> Float[Tensor, "batch sites *site parameters"]:
        """Compute the parameters of all sites in one pass.

        Args:
            x: values of the sites.
            context: for each example the context c, followed by the empty context ∅.
        """
        return self.guided(self.conditioner(torch.cat([x, x]), self._stacked(context)))

    def stream(self, like: Tensor, context: Tensor | None = None) -> Stream:
        """Start a generation, with a doubled batch for both contexts."""
        return _GuidedStream(self, self.conditioner.stream(torch.cat([like, like]), self._stacked(context)))

    def examples_at_once(self, like: Tensor) -> int:
        """Return half the number of the unguided conditioner."""
        return max(1, self.conditioner.examples_at_once(torch.cat([like, like])) // 2)

    def guided(self, parameters: Float[Tensor, "both *rest"]) -> Float[Tensor, "batch *rest"]:
        """Combine the parameters for c, in the first half of the batch, with those for ∅ in the second."""
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
