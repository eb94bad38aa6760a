"""Composition and inversion of bijections."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from arflows.core.bijections.base import Bijection, zero_log_det
from arflows.core.bijections.recompute import forward_recomputing
from arflows.core.runtime.torch_compat import is_transformed


class Chain(Bijection):
    """Composition of bijections; the first one is applied to the data.

    Args:
        *bijections: the parts, in the order data → latent.

    Attributes:
        recompute: True if activations are recomputed in the backward pass instead of being stored; set by the function
            of that name.

    >>> from arflows.core.bijections import ActNorm, Permutation
    >>> chain = Chain(ActNorm(3), Permutation(torch.tensor([2, 0, 1])))
    >>> z, log_det = chain(torch.tensor([[1.0, 2.0, 3.0]]))
    >>> z
    tensor([[3., 1., 2.]], grad_fn=<IndexSelectBackward0>)
    """

    def __init__(self, *bijections: Bijection) -> None:
        super().__init__()
        self.recompute = False
        self.bijections = nn.ModuleList(bijections)

    def __iter__(self) -> Iterator[Bijection]:
        return iter(self.bijections)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent; log-determinants of the parts add up."""
        log_det = zero_log_det(x)
        if self.recompute and torch.is_grad_enabled() and not is_transformed():
            x, parts = forward_recomputing(list(self), x, context)
            return x, sum(parts, log_det)
        for bijection in self.bijections:
            x, part = bijection(x, context)
            log_det = log_det + part
        return x, log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data by the inverses of the parts in reverse order."""
        log_det = zero_log_det(z)
        for bijection in reversed(list(self)):
            z, part = bijection.inverse(z, context)
            log_det = log_det + part
        return z, log_det

    def latent_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Apply the `latent_shape` of each part."""
        for bijection in self:
            event_shape = bijection.latent_shape(event_shape)
        return event_shape


class Inverse(Bijection):
    """Bijection with its directions exchanged; turns a MAF into an IAF, a logit into a sigmoid.

    Args:
        bijection: a bijection that keeps the shape of the event.

    >>> from arflows.core.bijections import Logit
    >>> x, log_det = Inverse(Logit())(torch.zeros(1, 2))
    >>> x
    tensor([[0.5000, 0.5000]])
    """

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection = bijection

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent by the inverse of the given bijection."""
        return self.bijection.inverse(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data by the forward pass of the given bijection."""
        return self.bijection(z, context)


def recompute(module: nn.Module, on: bool = True) -> None:
    """Set whether the chains in a flow recompute activations in the backward pass; gradients are the same to rounding.

    Second derivatives work too, and store the activations. Transforms of torch.func ignore the setting.

    Args:
        module: a flow or a bijection.
        on: False to store activations, which is the default of a chain.
    """
    for part in module.modules():
        if isinstance(part, Chain):
            part.recompute = on
