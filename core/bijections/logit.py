"""Logit: from a bounded interval to the real line."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from arflows.core.bijections.base import Bijection, sum_except_batch


class Logit(Bijection):
    """z = logit(α + (1 − 2α) · x) for x in [0, 1], element by element.

    A positive α maps the ends of the interval to finite numbers. Dinh, Sohl-Dickstein & Bengio 2017
    (arXiv:1605.08803), section 4.1, use α = 0.05 for pixels divided by 256.

    Inputs outside [0, 1] are clipped where the logit would overflow. Outputs of the inverse exceed [0, 1] by up to
    α / (1 − 2α) at both ends, where a trained density is small.

    Args:
        alpha: margin α at each end of the unit interval, in (0, ½).

    Raises:
        ValueError: if ``alpha`` is not in (0, ½).

    >>> z, log_det = Logit(0.05)(torch.tensor([[0.0, 0.5, 1.0]]))
    >>> z
    tensor([[-2.9444,  0.0000,  2.9444]])
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha must lie between 0 and 0.5, got {alpha}")
        self.alpha = alpha

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data in [0, 1] → latent on the real line."""
        tiny = torch.finfo(x.dtype).eps
        inner = (self.alpha + (1 - 2 * self.alpha) * x).clamp(tiny, 1 - tiny)
        log_inner, log_rest = inner.log(), torch.log1p(-inner)
        return log_inner - log_rest, sum_except_batch(math.log(1 - 2 * self.alpha) - log_inner - log_rest)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent on the real line → data."""
        x = (torch.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha)
        return x, sum_except_batch(F.logsigmoid(z) + F.logsigmoid(-z) - math.log(1 - 2 * self.alpha))

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"alpha={self.alpha}"
