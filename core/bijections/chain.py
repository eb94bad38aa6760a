"""Bijections made of others: in a row, or with their directions exchanged."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from arflows.core.bijections.base import Bijection, zero_log_det
from arflows.core.bijections.recompute import forward_recomputing


class Chain(Bijection):
    """Bijections one after the other; the first given is the nearest to the data.

    Attributes:
        recompute: Whether activations are computed anew in the backward pass instead of being kept; see the function of
            that name.
    """

    def __init__(self, *bijections: Bijection) -> None:
        super().__init__()
        self.recompute = False
        self.bijections = nn.ModuleList(bijections)

    def __iter__(self) -> Iterator[Bijection]:
        return iter(self.bijections)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent: log-determinants of the parts add up."""
        log_det = zero_log_det(x)
        if self.recompute and torch.is_grad_enabled():
            x, parts = forward_recomputing(list(self), x, context)
            return x, sum(parts, log_det)
        for bijection in self.bijections:
            x, part = bijection(x, context)
            log_det = log_det + part
        return x, log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data: the parts' inverses in the opposite order."""
        log_det = zero_log_det(z)
        for bijection in reversed(list(self)):
            z, part = bijection.inverse(z, context)
            log_det = log_det + part
        return z, log_det

    def latent_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shapes pass through the parts in turn."""
        for bijection in self:
            event_shape = bijection.latent_shape(event_shape)
        return event_shape


class Inverse(Bijection):
    """The same bijection with its directions exchanged; turns a MAF into an IAF, a logit into a sigmoid.

    Only for bijections that keep the shape of the event.
    """

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection = bijection

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent, by the inverse of the bijection given."""
        return self.bijection.inverse(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data, by the forward pass of the bijection given."""
        return self.bijection(z, context)


def recompute(module: nn.Module, on: bool = True) -> None:
    """Set whether the chains in a flow recompute activations in the backward pass; gradients are the same to rounding.

    Args:
        module: A flow, or a bijection.
        on: False to keep activations, as is usual.
    """
    for part in module.modules():
        if isinstance(part, Chain):
            part.recompute = on
