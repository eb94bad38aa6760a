"""Weight-normalised convolutions that can be pickled, which modules under ``torch.nn.utils.parametrize`` cannot."""

from typing import Any

import torch
from torch import Tensor, nn


class _WeightNorm(nn.Module):
    """Mixin that replaces the weight of a layer by a direction v and a magnitude g: W = g · v / |v|.

    Salimans & Kingma, "Weight normalization", 2016 (arXiv:1602.07868), equation 2, with a norm for each output channel.
    """

    weight_g: nn.Parameter
    weight_v: nn.Parameter

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        weight = self._parameters.pop("weight")
        assert weight is not None
        self.weight_g = nn.Parameter(_norms(weight.detach()))
        self.weight_v = nn.Parameter(weight.detach())

    @property
    def weight(self) -> Tensor:
        """The weight W, differentiable by magnitude and direction."""
        return self.weight_v * (self.weight_g / _norms(self.weight_v))


class WeightNormConv1d(_WeightNorm, nn.Conv1d):  # type: ignore[override]
    """Weight-normalised `torch.nn.Conv1d`, with the same arguments.

    >>> convolution = WeightNormConv1d(2, 4, kernel_size=3)
    >>> sorted(dict(convolution.named_parameters()))
    ['bias', 'weight_g', 'weight_v']
    """


class WeightNormConv2d(_WeightNorm, nn.Conv2d):  # type: ignore[override]
    """Weight-normalised `torch.nn.Conv2d`, with the same arguments.

    >>> convolution = WeightNormConv2d(2, 4, kernel_size=3)
    >>> convolution.weight_g.shape, convolution.weight.shape
    (torch.Size([4, 1, 1, 1]), torch.Size([4, 2, 3, 3]))
    """


def _norms(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)
