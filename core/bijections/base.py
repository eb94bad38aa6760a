"""Interface of bijections, and sums of log-determinants."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arflows.core.runtime.errors import UserError


class Bijection(nn.Module, ABC):
    """Invertible map between data and latents with a tractable log-determinant.

    ``forward`` maps data → latent, the direction of density and training; ``inverse`` maps latent → data, the direction
    of sampling. Tensors are (batch, *event). Both directions return their output and their log-determinant
    log|det ∂output/∂input|, summed over all event dimensions, of shape (batch,) and in float32 or wider. The state of a
    flow is in float32 or float64, also under autocast, where only the conditioners run in half precision.

    ``context`` is the variable that the density is conditioned on, (batch, features), or a feature map (batch,
    features, height, width) with a vector for each pixel of the conditioner's input. Bijections that do not use it
    ignore it.

    Attributes:
        reversible: True if the inverse costs about as much as the forward pass, recovers the input up to rounding, and
            neither is random. Then activations can be recovered by the inverse, see `recompute`.
    """

    reversible = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the parameters; ``to``, ``half``, ``cuda`` and the like call this method."""
        refuse_half_precision(fn)
        return super()._apply(fn, recurse)

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "batch *event"], context: Float[Tensor, "batch features"] | None = None
    ) -> tuple[Float[Tensor, "batch *latent"], Float[Tensor, " batch"]]:
        """Map data → latent and return z and log|det ∂z/∂x|."""

    @abstractmethod
    def inverse(
        self, z: Float[Tensor, "batch *latent"], context: Float[Tensor, "batch features"] | None = None
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"]]:
        """Map latent → data and return x and log|det ∂x/∂z|."""

    def latent_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a latent for data of ``event_shape``, both without the batch dimension."""
        return event_shape


def zero_log_det(x: Tensor) -> Float[Tensor, " batch"]:
    """Return zeros (batch,), the log-determinant of a volume-preserving map of ``x``."""
    return torch.zeros(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def sum_except_batch(values: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
    """Sum elementwise log-derivatives over all dimensions but the batch, in float32 or wider."""
    return values.flatten(1).sum(1, dtype=torch.promote_types(values.dtype, torch.float32))


def refuse_half_precision(convert: Callable[[Tensor], Tensor]) -> None:
    """Raise UserError if a conversion of parameters, as `nn.Module._apply` gets it, is to half precision."""
    dtype = convert(torch.empty(0)).dtype
    if dtype.is_floating_point and dtype.itemsize < torch.float32.itemsize:
        raise UserError(
            f"flows compute in float32 or float64, not in {dtype}: leave the parameters as they are and run under "
            "torch.autocast, which computes the networks in half precision"
        )


def full_precision(values: Tensor) -> torch.autocast:
    """Return a context without autocast: half precision would ruin the inverse of a linear map and save little."""
    return torch.autocast(values.device.type, enabled=False)
