"""What a bijection is, and the two ways of building one from others."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arflows.core.bijections.recompute import forward_recomputing
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.transforms import is_transformed


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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the parameters; every ``to``, ``half``, ``cuda`` … comes here."""
        dtype = fn(torch.empty(0)).dtype
        if dtype.is_floating_point and dtype.itemsize < torch.float32.itemsize:
            raise UserError(
                f"flows compute in float32 or float64, not in {dtype}: leave the parameters as they are and run under "
                "torch.autocast, which computes the networks in half precision"
            )
        return super()._apply(fn, recurse)

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
        if self.recompute and torch.is_grad_enabled() and not is_transformed():
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


def zero_log_det(x: Tensor) -> Float[Tensor, " batch"]:
    """The log-determinant of a map that keeps volumes: zeros, one for each example of ``x``."""
    return torch.zeros(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def sum_except_batch(values: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
    """Sums a per-element log-determinant over everything but the batch, in float32 or wider."""
    return values.flatten(1).sum(1, dtype=torch.promote_types(values.dtype, torch.float32))


def full_precision(values: Tensor) -> torch.autocast:
    """Return a context without autocast: half precision would ruin the inverse of a linear map and save little."""
    return torch.autocast(values.device.type, enabled=False)
