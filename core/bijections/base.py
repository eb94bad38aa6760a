"""Bijection base class, composition and inversion."""

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
        """Map data → latent and return z and log|det ∂z/∂x|."""

    @abstractmethod
    def inverse(
        self, z: Float[Tensor, "batch *latent"], context: Float[Tensor, "batch features"] | None = None
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"]]:
        """Map latent → data and return x and log|det ∂x/∂z|."""

    def latent_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a latent for data of ``event_shape``, both without the batch dimension."""
        return event_shape


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


def zero_log_det(x: Tensor) -> Float[Tensor, " batch"]:
    """Return zeros (batch,), the log-determinant of a volume-preserving map of ``x``."""
    return torch.zeros(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def sum_except_batch(values: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
    """Sum elementwise log-derivatives over all dimensions but the batch, in float32 or wider."""
    return values.flatten(1).sum(1, dtype=torch.promote_types(values.dtype, torch.float32))


def full_precision(values: Tensor) -> torch.autocast:
    """Return a context without autocast: half precision would ruin the inverse of a linear map and save little."""
    return torch.autocast(values.device.type, enabled=False)
