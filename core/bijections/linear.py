"""Permutations, squeezes and invertible linear maps of channels."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arflows.core.bijections.base import Bijection, no_volume


class Permutation(Bijection):
    """Reorders the first event dimension: channels of an image, features of a vector.

    Args:
        order: position in the data of each latent entry, z[:, i] = x[:, order[i]].

    Raises:
        ValueError: if ``order`` is not a permutation of 0 … n − 1.
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(self, order: Int[Tensor, " size"]) -> None:
        super().__init__()
        if order.ndim != 1 or not torch.equal(order.sort().values, torch.arange(len(order), device=order.device)):
            raise ValueError(f"order must be a permutation of 0 … {max(len(order) - 1, 0)}, got {order.tolist()}")
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", order.argsort())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent."""
        return x.index_select(1, self.order), no_volume(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data."""
        return z.index_select(1, self.inverse_order), no_volume(z)


class Squeeze(Bijection):
    """Trades space for channels: (channels, height, width) → (4 · channels, height / 2, width / 2).

    Each 2×2 block of pixels becomes four channels (Dinh et al. 2017, section 3.6). Latent channel 4c + 2i + j is data
    channel c at row i, column j of the blocks.
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent."""
        blocks = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (batch, channels, rows, i, columns, j)
        return blocks.permute(0, 1, 3, 5, 2, 4).flatten(1, 3), no_volume(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data."""
        blocks = z.unflatten(1, (-1, 2, 2))  # (batch, channels, i, j, rows, columns)
        return blocks.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3), no_volume(z)

    def latent_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Four times the channels at half the resolution.

        Raises:
            ValueError: if height or width is odd.
        """
        channels, height, width = event_shape
        if height % 2 or width % 2:
            raise ValueError(f"a squeeze needs an even height and width, got {height}×{width}")
        return 4 * channels, height // 2, width // 2


class InvertibleConv1x1(Bijection):
    """A learned invertible linear map of the channels at every pixel, by its LU decomposition.

    Kingma & Dhariwal, "Glow", 2018 (arXiv:1807.03039), section 3.2, equation 10: W = P · L · (U + diag(s)), with a
    fixed permutation P and sign(s), so that log|det| is height · width · Σ log|s| without computing a determinant. It
    starts as a random rotation.

    Args:
        channels: number of channels.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        dtype = torch.get_default_dtype()
        self.register_buffer("permutation", permutation.to(dtype))
        self.register_buffer("sign", diagonal.sign().to(dtype))
        self.lower = nn.Parameter(lower.tril(-1).to(dtype))
        self.upper = nn.Parameter(upper.triu(1).to(dtype))
        self.log_scale = nn.Parameter(diagonal.abs().log().to(dtype))

    def _factors(self) -> tuple[Float[Tensor, "channels channels"], Float[Tensor, "channels channels"]]:
        """L with its unit diagonal, and U + diag(s)."""
        identity = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        return self.lower.tril(-1) + identity, self.upper.triu(1) + torch.diag(self.sign * self.log_scale.exp())

    def weight(self) -> Float[Tensor, "channels channels"]:
        """The matrix W of data → latent."""
        lower, upper = self._factors()
        return self.permutation @ lower @ upper

    def inverse_weight(self) -> Float[Tensor, "channels channels"]:
        """The matrix W⁻¹ of latent → data, by two triangular solves."""
        lower, upper = self._factors()
        half = torch.linalg.solve_triangular(lower, self.permutation.T, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, half, upper=True)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent."""
        return self._apply_matrix(x, inverse=False), self._log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data."""
        return self._apply_matrix(z, inverse=True), -self._log_det(z)

    def _apply_matrix(self, values: Tensor, inverse: bool) -> Tensor:
        # Half precision here would cost the round trip its accuracy and save next to nothing.
        with torch.autocast(values.device.type, enabled=False):
            matrix = self.inverse_weight() if inverse else self.weight()
            return F.conv2d(values, matrix[:, :, None, None])

    def _log_det(self, values: Tensor) -> Tensor:
        pixels = values.shape[-2] * values.shape[-1]
        return no_volume(values) + pixels * self.log_scale.sum()
