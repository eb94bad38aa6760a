"""Monotone rational-quadratic splines."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arflows.core.bijections.elementwise import Elementwise, bounded


class RationalQuadraticSpline(Elementwise):
    """Monotone rational-quadratic spline on [−bound, bound], the identity outside.

    Durkan, Bekasov, Murray & Papamakarios, "Neural Spline Flows", 2019 (arXiv:1906.04032), equations 4–8; the inverse
    by the numerically stable root of its quadratic (appendix A.2). Values are clipped to the interval before any
    arithmetic, so that values and gradients in the tails are finite at any distance.

    Parameters of an element: ``bins`` widths, ``bins`` heights, ``bins − 1`` inner derivatives, all unconstrained.

    Args:
        bins: number of bins K.
        bound: half-width B of the interval; outside [−B, B] the map is the identity.
        min_bin: smallest width and height of a bin, as a share of the interval.
        min_derivative: smallest derivative at a knot.
        slope: limit of how unequal bins and how steep knots get, as zuko has it: raw widths and heights are squashed
            into ±½ |log slope|, raw derivatives into ±|log slope|, with slope 1 at zero. None for no limit; then the
            round trip through steep splines is less exact.

    Raises:
        ValueError: if the bins do not fit into the interval, or ``slope`` does not lie between 0 and 1.

    >>> spline = RationalQuadraticSpline(bins=4)
    >>> parameters = torch.randn(5, spline.parameter_count)
    >>> z, log_derivative = spline(torch.linspace(-4, 4, 5), parameters)
    >>> x, _ = spline.inverse(z, parameters)
    >>> torch.allclose(x, torch.linspace(-4, 4, 5), atol=1e-4)
    True
    """

    def __init__(
        self,
        bins: int = 8,
        bound: float = 3.0,
        min_bin: float = 1e-3,
        min_derivative: float = 1e-3,
        slope: float | None = 1e-3,
    ) -> None:
        super().__init__()
        if bins * min_bin >= 1:
            raise ValueError(f"bins={bins} of at least min_bin={min_bin} do not fit into the interval")
        if slope is not None and not 0 < slope < 1:
            raise ValueError(f"slope={slope} must lie between 0 and 1")
        self.bins = bins
        self.bound = bound
        self.slope = slope
        self.raw_bound = math.inf if slope is None else -math.log(slope)
        self.min_bin = min_bin
        self.min_derivative = min_derivative
        self.parameter_count = 3 * bins - 1
        # softplus(offset) + min_derivative = 1: zero parameters continue the tails' slope.
        self.derivative_offset = math.log(math.expm1(1 - min_derivative))

    def _knots(self, raw: Float[Tensor, "*shape bins"]) -> Float[Tensor, "*shape knots"]:
        """Return the increasing knots from −bound to bound; no bin is narrower than ``min_bin`` of the interval."""
        shares = self.min_bin + (1 - self.bins * self.min_bin) * F.softmax(raw, -1)
        inner = shares.cumsum(-1)[..., :-1]
        return self.bound * (2 * F.pad(F.pad(inner, (1, 0)), (0, 1), value=1.0) - 1)

    def _bin(
        self, parameters: Tensor, values: Tensor, inverse: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the bin of each value: left x, width, left y, height, left and right derivative."""
        raw_sizes, raw_derivatives = parameters.split([2 * self.bins, self.bins - 1], -1)
        if self.slope is not None:
            raw_sizes = bounded(raw_sizes, self.raw_bound / 2)
            raw_derivatives = bounded(raw_derivatives, self.raw_bound)
        raw_widths, raw_heights = raw_sizes.chunk(2, -1)
        x, y = self._knots(raw_widths), self._knots(raw_heights)
        derivatives = self.min_derivative + F.softplus(raw_derivatives + self.derivative_offset)
        derivatives = F.pad(derivatives, (1, 1), value=1.0)

        inner_knots = (y if inverse else x)[..., 1:-1]
        index = (values.unsqueeze(-1) >= inner_knots).sum(-1, keepdim=True)

        def at(knots: Tensor, offset: int) -> Tensor:
            return knots.gather(-1, index + offset).squeeze(-1)

        x_left, y_left = at(x, 0), at(y, 0)
        return x_left, at(x, 1) - x_left, y_left, at(y, 1) - y_left, at(derivatives, 0), at(derivatives, 1)

    def forward(self, values: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Data → latent."""
        clipped = values.clamp(-self.bound, self.bound)
        x, width, y, height, left, right = self._bin(parameters, clipped, inverse=False)
        slope = height / width
        t = (clipped - x) / width
        mixed = t * (1 - t)
        denominator = slope + (left + right - 2 * slope) * mixed
        inside = y + height * (slope * t.square() + left * mixed) / denominator
        log_derivative = self._log_derivative(slope, left, right, t, mixed, denominator)
        return self._with_tails(values, inside, log_derivative)

    def inverse(self, values: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Latent → data."""
        clipped = values.clamp(-self.bound, self.bound)
        x, width, y, height, left, right = self._bin(parameters, clipped, inverse=True)
        slope = height / width
        rise = clipped - y
        bend = left + right - 2 * slope
        a = height * (slope - left) + rise * bend
        b = height * left - rise * bend
        c = -slope * rise
        # The root in [0, 1], by the form without cancellation. The clamps guard against rounding, the first one also
        # against the infinite slope of the square root at zero.
        root = (b.square() - 4 * a * c).clamp_min(torch.finfo(b.dtype).eps ** 2).sqrt()
        t = (torch.where(b < 0, root - b, -2 * c) / torch.where(b < 0, 2 * a, b + root)).clamp(0, 1)
        mixed = t * (1 - t)
        denominator = slope + bend * mixed
        log_derivative = self._log_derivative(slope, left, right, t, mixed, denominator)
        return self._with_tails(values, x + t * width, -log_derivative)

    @staticmethod
    def _log_derivative(
        slope: Tensor, left: Tensor, right: Tensor, t: Tensor, mixed: Tensor, denominator: Tensor
    ) -> Tensor:
        """Return the logarithm of equation 5 at relative position t of a bin."""
        numerator = right * t.square() + 2 * slope * mixed + left * (1 - t).square()
        return 2 * (slope.log() - denominator.log()) + numerator.log()

    def _with_tails(self, values: Tensor, inside: Tensor, log_derivative: Tensor) -> tuple[Tensor, Tensor]:
        tail = values.abs() > self.bound
        return torch.where(tail, values, inside), torch.where(tail, 0.0, log_derivative)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"bins={self.bins}, bound={self.bound}, slope={self.slope}"
