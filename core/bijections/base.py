"""The interface of bijections, and sums of log-determinants."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Bijection(nn.Module, ABC):
    """An invertible map between data and latents that knows the volume it creates.

    ``forward`` goes data → latent, the direction of density and of training; ``inverse`` goes latent → data, the
    direction of sampling. Tensors are (batch, *event). Both return the log-determinant log|det ∂output/∂input| of the
    direction called, summed over all event dimensions, of shape (batch,) and in float32 or wider: the state of a flow
    stays in full precision, also under autocast, where only the conditioners run in half precision.

    ``context`` is what the density is conditioned on, (batch, features), or a feature map (batch, features, height,
    width) with a place for each pixel that a conditioner sees; bijections without use for it ignore it.

    Attributes:
        reversible: Whether the inverse costs about as much as the forward pass, gives the input back to rounding, and
            nothing in either is random: then activations can be had back by it, see `recompute`.
    """

    reversible = False

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "batch *event"], context: Float[Tensor, "batch features"] | None = None
    ) -> tuple[Float[Tensor, "batch *latent"], Float[Tensor, " batch"]]:
        """Data → latent: returns z and log|det ∂z/∂x|."""

    @abstractmethod
    def inverse(
        self, z: Float[Tensor, "batch *latent"], context: Float[Tensor, "batch features"] | None = None
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"]]:
        """Latent → data: returns x and log|det ∂x/∂z|."""

    def latent_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a latent for data of ``event_shape``, both without the batch dimension."""
        return event_shape


def zero_log_det(x: Tensor) -> Float[Tensor, " batch"]:
    """The log-determinant of a map that keeps volumes: zeros, one for each example of ``x``."""
    return torch.zeros(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def sum_except_batch(values: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
    """Sums a per-element log-determinant over everything but the batch, in float32 or wider."""
    return values.flatten(1).sum(1, dtype=torch.promote_types(values.dtype, torch.float32))
