"""From integers to densities and back."""

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
    """Spreads each integer x of 0 … levels − 1 over its cell: y = (x + u) / levels with noise u of [0, 1).

    With u of density q(u|x), E_u[log p(y) − log q(u|x)] − D · log(levels) is a lower bound of the log-probability of D
    integers (Theis, van den Oord & Bethge 2016, arXiv:1511.01844, section 3.1; Ho et al. 2019, arXiv:1902.00275,
    equation 6), and so is the logarithm of the mean of several draws' exponentials.

    Args:
        levels: number of integer values; 256 for 8-bit pixels.

    Attributes:
        protocol: how figures call the kind of noise.
        likelihood: what a flow's `log_prob` with this dequantizer is.
    """

    protocol: str
    likelihood: Literal["exact", "density", "bound"] = "bound"
    origin: Tensor

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        self.levels = levels
        # Carries the dtype in which to dequantise, that of the flow.
        self.register_buffer("origin", torch.zeros(()), persistent=False)

    @abstractmethod
    def forward(
        self, x: Integer[Tensor, "batch *event"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"] | float]:
        """Integers → points of their cells in [0, 1], and −log q(u|x) − D · log(levels) of each example, in nats."""

    def midpoint(self, x: Integer[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Integers → the middles of their cells in [0, 1], without randomness."""
        return (x.to(self.origin.dtype) + 0.5) / self.levels

    def quantize(self, y: Float[Tensor, "batch *event"]) -> Integer[Tensor, "batch *event"]:
        """Points → the integers whose cells they lie in; points outside [0, 1] go to the nearest end."""
        dtype = torch.uint8 if self.levels <= 256 else torch.int32
        return (y * self.levels).floor().clamp(0, self.levels - 1).to(dtype)

    def _uniform_noise(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return noise_rows(torch.rand, x.shape, generator=generator, device=x.device, dtype=self.origin.dtype)

    def _log_cell(self, x: Tensor) -> float:
        """The log-volume of an example's cell."""
        return -x[0].numel() * math.log(self.levels) if len(x) else 0.0

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"levels={self.levels}"


class UniformDequantizer(Dequantizer):
    """Noise that is uniform on [0, 1) (Theis, van den Oord & Bethge 2016, arXiv:1511.01844, section 3.1).

    Args:
        levels: number of integer values; 256 for 8-bit pixels.
    """

    protocol = "uniform dequantisation"

    def forward(
        self, x: Integer[Tensor, "batch *event"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch *event"], float]:
        """Integers → points of their cells in [0, 1], and the log-volume of an example's cell in nats."""
        return (x + self._uniform_noise(x, generator)) / self.levels, self._log_cell(x)


class VariationalDequantizer(Dequantizer):
    """Noise from a flow q(u|x) that is learned together with the model of the data.

    Ho, Chen, Srinivas, Duan & Abbeel, "Flow++", 2019 (arXiv:1902.00275), section 3.1. u = σ(f(logit u₀; x)) with u₀
    uniform and f a bijection of the line; where f is the identity this is uniform dequantisation. (The paper
    starts from normal noise.) The closer q(u|x) is to p(u|x), the tighter the bound.

    Args:
        bijection: f, from noise (``forward``), of the shape of the data; its inverse is never needed.
        encoder: network from the middles of the cells in [0, 1], of the shape of the data, to f's context.
        levels: number of integer values; 256 for 8-bit pixels.
    """

    protocol = "variational dequantisation"

    def __init__(self, bijection: Bijection, encoder: nn.Module, levels: int = 256) -> None:
        super().__init__(levels)
        self.bijection = bijection
        self.encoder = encoder

    def forward(
        self, x: Integer[Tensor, "batch *event"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"]]:
        """Integers → points of their cells in [0, 1], and −log q(u|x) − D · log(levels) of each example, in nats."""
        tiny = torch.finfo(self.origin.dtype).eps
        uniform = self._uniform_noise(x, generator).clamp(tiny, 1 - tiny)
        log_uniform, log_rest = uniform.log(), torch.log1p(-uniform)
        noise, log_det = self.bijection(log_uniform - log_rest, self.encoder(self.midpoint(x)))
        # The uniform noise has density one, so −log q is the log-determinant of the way from it to u.
        log_derivative = F.logsigmoid(noise) + F.logsigmoid(-noise) - log_uniform - log_rest
        return (x + noise.sigmoid()) / self.levels, log_det + sum_except_batch(log_derivative) + self._log_cell(x)


class GaussianDequantizer(Dequantizer):
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
        noise = noise_rows(torch.randn, x.shape, generator=generator, device=x.device, dtype=self.origin.dtype)
        return self.midpoint(x) + self.scale * noise, self._log_cell(x)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"scale={self.scale:g}, {super().extra_repr()}"
