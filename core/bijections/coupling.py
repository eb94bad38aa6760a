"""Coupling layers: one part of an example decides how the other is mapped."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arflows.core.bijections.base import Bijection, sum_except_batch
from arflows.core.bijections.elementwise import Elementwise
from arflows.core.bijections.masks import Mask


class Coupling(Bijection):
    """Maps the changed part of an example elementwise, with parameters computed from the kept part.

    Dinh, Sohl-Dickstein & Bengio 2017 (arXiv:1605.08803), equations 7–9. Both directions take one pass of the
    conditioner.

    Args:
        mask: which part is kept and which changes.
        elementwise: the map of the changed elements.
        conditioner: network from (``mask.conditioner_input``, context) to (batch, parameters · changed channels, …),
            where the parameters of a channel lie ``changed channels`` apart.
    """

    reversible = True

    def __init__(self, mask: Mask, elementwise: Elementwise, conditioner: nn.Module) -> None:
        super().__init__()
        self.mask = mask
        self.elementwise = elementwise
        self.conditioner = conditioner

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent."""
        kept, changed = self.mask.split(x)
        z, log_derivative = self.elementwise(changed, self._elementwise_parameters(kept, context))
        return self.mask.merge(kept, z), sum_except_batch(self.mask.only_changed(log_derivative))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data."""
        kept, changed = self.mask.split(z)
        x, log_derivative = self.elementwise.inverse(changed, self._elementwise_parameters(kept, context))
        return self.mask.merge(kept, x), sum_except_batch(self.mask.only_changed(log_derivative))

    def _elementwise_parameters(
        self, kept: Tensor, context: Tensor | None
    ) -> Float[Tensor, "batch changed *space parameters"]:
        raw = self.conditioner(self.mask.conditioner_input(kept), context)
        # The conditioner may have run in half precision under autocast; the flow's state never does. It may also have
        # run channels-last, in which elementwise maths is several times slower than in the state's own layout.
        raw = raw.to(kept.dtype, memory_format=torch.contiguous_format)
        return raw.unflatten(1, (self.elementwise.parameter_count, -1)).movedim(1, -1)
