"""Coupling layers: one part of an example is mapped given the other."""

from jaxtyping import Float
from torch import Tensor, nn

from arflows.core.bijections.base import Bijection, sum_except_batch
from arflows.core.bijections.elementwise import Elementwise
from arflows.core.bijections.masks import Mask


class Coupling(Bijection):
    """Elementwise map of the changed part of an example, with parameters computed from the kept part.

    Dinh, Sohl-Dickstein & Bengio 2017 (arXiv:1605.08803), equations 7–9. Each direction takes one pass of the
    conditioner.

    Args:
        mask: split of an example into its kept and its changed part.
        elementwise: map of the changed elements.
        conditioner: network from (``mask.conditioner_input``, context) to (batch, parameters · changed channels, …);
            the parameters of a channel are ``changed channels`` apart.

    >>> import torch
    >>> from arflows.core.bijections import Affine, ChannelMask
    >>> from arflows.core.conditioners import MLP
    >>> coupling = Coupling(ChannelMask(4), Affine(), MLP(in_features=2, out_features=4, hidden_features=(16,)))
    >>> z, log_det = coupling(torch.randn(5, 4))
    >>> z.shape, log_det.shape
    (torch.Size([5, 4]), torch.Size([5]))
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
        # Under autocast the conditioner returns half precision, but the flow's state stays in float32. Elementwise
        # operations are several times slower on the channels-last output of a convolution.
        raw = raw.to(kept.dtype).contiguous()
        return raw.unflatten(1, (self.elementwise.parameter_count, -1)).movedim(1, -1)
