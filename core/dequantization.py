"""Dequantisation: from integers to densities and back."""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from arflows.core.bijections.base import Bijection, sum_except_batch
from arflows.core.runtime.noise import noise_rows


class Dequantizer(nn.Module, ABC):
    """Noise that spreads each integer x of 0 … levels − 1 over its cell: y = (x + u) / levels with u in [0, 1).

    If u has density q(u|x), E_u[log p(y) − log q(u|x)] − D · log(levels) is a lower bound of the log-probability of D
    integers (Theis, van den Oord & Bethge 2016, arXiv:1511.01844, section 3.1; Ho et al. 2019, arXiv:1902.00275,
    equation 6). So is the log-mean-exp of several draws.

    Args:
        levels: number of integer values; 256 for 8-bit pixels.

    Attributes:
        noise: name of the noise in reports.
        likelihood: kind of a flow's `log_prob` with this dequantizer.
    """

    noise: str
    likelihood: Literal["exact", "density", "bound"] = "bound"
    origin: Tensor

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        self.levels = levels
        # The dtype of dequantised values, that of the flow.
        self.register_buffer("origin", torch.zeros(()), persistent=False)

    @abstractmethod
    def forward(
        self, x: Integer[Tensor, "batch *event"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"] | float]:
        """Map integers to points of their cells in [0, 1]; also return −log q(u|x) − D · log(levels) in nats."""

    def midpoint(self, x: Integer[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Map integers to the midpoints of their cells in [0, 1], without randomness."""
        return (x.to(self.origin.dtype) + 0.5) / self.levels

    def quantize(self, y: Float[Tensor, "batch *event"]) -> Integer[Tensor, "batch *event"]:
        """Map points to the integers of their cells; points outside [0, 1] are clipped."""
        dtype = torch.uint8 if self.levels <= 256 else torch.int32
        return (y * self.levels).floor().clamp(0, self.levels - 1).to(dtype)

    def _uniform_noise(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return noise_rows(torch.rand, x.shape, generator=generator, device=x.device, dtype=self.origin.dtype)

    def _log_cell(self, x: Tensor) -> float:
        """Return the log-volume of the cell of an example."""
        return -x[0].numel() * math.log(self.levels) if x.shape[0] else 0.0

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"levels={self.levels}"


class UniformDequantizer(Dequantizer):
    """Noise that is uniform on [0, 1) (Theis, van den Oord & Bethge 2016, arXiv:1511.01844, section 3.1).

    Args:
        levels: number of integer values; 256 for 8-bit pixels.

    >>> dequantizer = UniformDequantizer(levels=4)
    >>> y, log_cell = dequantizer(torch.tensor([[0, 3]]))
    >>> dequantizer.quantize(y)
    tensor([[0, 3]], dtype=torch.uint8)
    """

    noise = "uniform dequantisation"

    def forward(
        self, x: Integer[Tensor, "batch *event"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch *event"], float]:
        """Map integers to points of their cells in [0, 1]; also return the log-volume of an example's cell in nats."""
        return (x + self._uniform_noise(x, generator)) / self.levels, self._log_cell(x)


class VariationalDequantizer(Dequantizer):
    """Noise from a flow q(u|x) that is trained together with the model of the data.

    Ho, Chen, Srinivas, Duan & Abbeel, "Flow++", 2019 (arXiv:1902.00275), section 3.1. u = σ(f(logit u₀; x)) with u₀
    uniform (normal in the paper) and f a bijection of the line; if f is the identity, this is uniform dequantisation.
    The closer q(u|x) is to p(u|x), the tighter is the bound.

    Args:
        bijection: f, applied to noise of the shape of the data by ``forward``; its inverse is not used.
        encoder: network from the midpoints of the cells in [0, 1], of the shape of the data, to the context of f.
        levels: number of integer values; 256 for 8-bit pixels.
    """

    noise = "variational dequantisation"

    def __init__(self, bijection: Bijection, encoder: nn.Module, levels: int = 256) -> None:
        super().__init__(levels)
        self.bijection = bijection
        self.encoder = encoder

    def forward(
        self, x: Integer[Tensor, "batch *event"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"]]:
        """Map integers to points of their cells in [0, 1]; also return −log q(u|x) − D · log(levels) in nats."""
        tiny = torch.finfo(self.origin.dtype).eps
        uniform = self._uniform_noise(x, generator).clamp(tiny, 1 - tiny)
        log_uniform, log_rest = uniform.log(), torch.log1p(-uniform)
        noise, log_det = self.bijection(log_uniform - log_rest, self.encoder(self.midpoint(x)))
        # The uniform noise has density one, so −log q is the log-determinant of the map from it to u.
        log_derivative = F.logsigmoid(noise) + F.logsigmoid(-noise) - log_uniform - log_rest
        return (x + noise.sigmoid()) / self.levels, log_det + sum_except_batch(log_derivative) + self._log_cell(x)


class GaussianDequantizer(Dequantizer):
    """Gaussian noise added to the midpoints of the integers' cells: y = (x + ½) / levels + σ ε.

    This noise blurs the cells into each other. A flow then learns the density of noisy data, in units of the integers,
    which neither is nor bounds the probability of the integers.

    Args:
        scale: standard deviation σ, on the unit interval.
        levels: number of integer values; 256 for 8-bit pixels.
    """

    likelihood: Literal["exact", "density", "bound"] = "density"

    def __init__(self, scale: float, levels: int = 256) -> None:
        super().__init__(levels)
        self.scale = scale
        self.noise = f"Gaussian noise of {scale * levels:.3g} integers' standard deviation"

    def forward(
        self, x: Integer[Tensor, "batch *event"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch *event"], float]:
        """Map integers to noisy points around [0, 1]; also return the log-volume of an example's cell in nats."""
        noise = noise_rows(torch.randn, x.shape, generator=generator, device=x.device, dtype=self.origin.dtype)
        return self.midpoint(x) + self.scale * noise, self._log_cell(x)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"scale={self.scale:g}, {super().extra_repr()}"
