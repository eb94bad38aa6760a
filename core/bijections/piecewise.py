"""Piecewise-linear cumulative distribution functions on an interval."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from arflows.core.bijections.elementwise import Elementwise


class PiecewiseLinearCDF(Elementwise):
    """Cumulative distribution function of a histogram with equal bins: maps [0, upper] to [0, 1].

    Müller, McWilliams, Rousselle, Gross & Novák, "Neural importance sampling", 2019 (arXiv:1808.03856), section 4.1.
    Outside the interval the map is x / upper, so that it is a bijection of the real line.

    Under a `Uniform` base the density is constant within a bin, which makes it exact for categorical data. Give each of
    K categories a bin and dequantise category k to [k, k + 1) (``upper=K``), or all to [0, 1) by `UniformDequantizer`
    (``upper=1``): then every draw of the noise gives the category's probability, softmax(parameters).

    Parameters of an element: ``bins`` logits. A logit of −∞ excludes its bin: the bin has probability 0, the inverse
    never returns a value in it, and the gradients of the other logits are finite. All-zero parameters are x / upper,
    the identity for ``upper=1``.

    Args:
        bins: number of bins K.
        upper: upper end of the data's interval.

    Raises:
        ValueError: if ``bins`` is below 1.

    >>> z, log_derivative = PiecewiseLinearCDF(2)(torch.tensor([0.5]), torch.tensor([[0.25, 0.75]]).log())
    >>> z, log_derivative.exp()
    (tensor([0.2500]), tensor([1.5000]))
    """

    def __init__(self, bins: int, upper: float = 1.0) -> None:
        super().__init__()
        if bins < 1:
            raise ValueError(f"a histogram needs at least 1 bin, got {bins}")
        self.bins = bins
        self.upper = upper
        self.width = upper / bins
        self.parameter_count = bins

    def forward(self, values: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Data in [0, upper] → latent in [0, 1]."""
        log_probabilities = F.log_softmax(parameters, -1)
        probabilities = log_probabilities.exp()
        position = values.clamp(0, self.upper) / self.width
        index = position.detach().floor().clamp(0, self.bins - 1)
        inside = _at(_edges(probabilities), index) + _at(probabilities, index) * (position - index)
        log_derivative = _at(log_probabilities, index) - math.log(self.width)
        tail = (values < 0) | (values > self.upper)
        # Rounding can make the end of the last bin exceed 1.
        z = torch.where(tail, values / self.upper, inside.clamp_max(1))
        return z, torch.where(tail, -math.log(self.upper), log_derivative)

    def inverse(self, values: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Latent in [0, 1] → data in [0, upper]."""
        log_probabilities = F.log_softmax(parameters, -1)
        probabilities = log_probabilities.exp()
        edges = _edges(probabilities)
        clipped = values.clamp(0, 1)
        # Counting the edges at or below a value skips bins of probability 0, whose two edges are equal. The minimum
        # excludes those at the end, which have no further edge.
        allowed = torch.arange(self.bins, device=values.device) * (probabilities > 0)
        index = (clipped.unsqueeze(-1) >= edges[..., 1:]).sum(-1).minimum(allowed.amax(-1))
        fraction = (clipped - _at(edges, index)) / _at(probabilities, index)
        # Rounding must not move a value past the end of its bin into one of probability 0.
        end = (index + 1).to(values.dtype) * (1 - torch.finfo(values.dtype).eps)
        inside = (index + fraction.clamp_min(0)).minimum(end) * self.width
        log_derivative = math.log(self.width) - _at(log_probabilities, index)
        tail = (values < 0) | (values > 1)
        return torch.where(tail, values * self.upper, inside), torch.where(tail, math.log(self.upper), log_derivative)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"bins={self.bins}, upper={self.upper}"


def _edges(probabilities: Tensor) -> Tensor:
    """Lower edge of each bin on the latent interval."""
    return F.pad(probabilities.cumsum(-1)[..., :-1], (1, 0))


def _at(table: Tensor, index: Tensor) -> Tensor:
    """Entry ``index`` of each element's own table."""
    return table.gather(-1, index.long().unsqueeze(-1)).squeeze(-1)
