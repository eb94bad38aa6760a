"""From integers to densities and back."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn


class UniformDequantizer(nn.Module):
    """Spreads integers 0 … levels − 1 evenly over the unit interval: y = (x + u) / levels with u uniform on [0, 1).

    Theis, van den Oord & Bethge, "A note on the evaluation of generative models", 2016 (arXiv:1511.01844), section
    3.1: E_u[log p(y)] − D · log(levels) is a lower bound of the log-probability of the integers, D their number.

    Args:
        levels: number of integer values; 256 for 8-bit pixels.
    """

    likelihood: Literal["exact", "density", "bound"] = "bound"
    protocol = "uniform dequantisation"
    origin: Tensor

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        self.levels = levels
        # Carries the dtype in which to dequantise, that of the flow.
        self.register_buffer("origin", torch.zeros(()), persistent=False)

    def forward(
        self, x: Integer[Tensor, "batch *event"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch *event"], float]:
        """Integers → points of their cells in [0, 1], and the log-volume of an example's cell in nats."""
        noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=self.origin.dtype)
        return (x + noise) / self.levels, self._log_cell(x)

    def midpoint(self, x: Integer[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Integers → the middles of their cells in [0, 1], without randomness."""
        return (x.to(self.origin.dtype) + 0.5) / self.levels

    def quantize(self, y: Float[Tensor, "batch *event"]) -> Integer[Tensor, "batch *event"]:
        """Points → the integers whose cells they lie in; points outside [0, 1] go to the nearest end."""
        dtype = torch.uint8 if self.levels <= 256 else torch.int64
        return (y * self.levels).floor().clamp(0, self.levels - 1).to(dtype)

    def _log_cell(self, x: Tensor) -> float:
        return -x[0].numel() * math.log(self.levels) if len(x) else 0.0

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"levels={self.levels}"


class GaussianDequantizer(UniformDequantizer):
    """Adds Gaussian noise to the middles of the integers' cells: y = (x + ½) / levels + σ ε.

    Such noise blurs the cells into each other. What a flow then learns is the density of noisy data, with integers one
    unit apart, which neither is nor bounds the probability of the integers.

    Args:
        scale: standard deviation σ, on the unit interval.
        levels: number of integer values; 256 for 8-bit pixels.
    """

    likelihood: Literal["exact", "density", "bound"] = "density"

    def __init__(self, scale: float, levels: int = 256) -> None:
        super().__init__(levels)
        self.scale = scale
        self.protocol = f"Gaussian noise of {scale * levels:.3g} integers' standard deviation"

    def forward(
        self, x: Integer[Tensor, "batch *event"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch *event"], float]:
        """Integers → noisy points around the unit interval, and the log-volume of an example's cell in nats."""
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=self.origin.dtype)
        return self.midpoint(x) + self.scale * noise, self._log_cell(x)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"scale={self.scale:g}, {super().extra_repr()}"
