"""Permutations, squeezes and invertible linear maps of channels."""

from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from arflows.core.bijections.base import Bijection, full_precision, zero_log_det
from arflows.core.bijections.normalization import ActNorm, sites
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.torch_compat import is_transformed

_LARGEST_INVERSION_ERROR = 0.01
"""Largest relative error of an inverted linear map before it is refused."""


class Permutation(Bijection):
    """Permutation of the first event dimension: channels of an image, features of a vector.

    Args:
        order: position in the data of each latent entry, z[:, i] = x[:, order[i]].

    Raises:
        ValueError: if ``order`` is not a permutation of 0 … n − 1.

    >>> z, log_det = Permutation(torch.tensor([2, 0, 1]))(torch.tensor([[1.0, 2.0, 3.0]]))
    >>> z, log_det
    (tensor([[3., 1., 2.]]), tensor([0.]))
    """

    reversible = True
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
        return x.index_select(1, self.order), zero_log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data."""
        return z.index_select(1, self.inverse_order), zero_log_det(z)


class Flatten(Bijection):
    """Reshaping of an event to a vector, last axis fastest.

    Args:
        event_shape: shape of an example, without the batch dimension.

    >>> Flatten((2, 3))(torch.zeros(5, 2, 3))[0].shape
    torch.Size([5, 6])
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent."""
        return x.flatten(1), zero_log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data."""
        return z.unflatten(1, self.event_shape), zero_log_det(z)

    def latent_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the vector."""
        return (prod(event_shape),)


class Squeeze(Bijection):
    """Squeeze of space into channels: (channels, height, width) → (4 · channels, height / 2, width / 2).

    Each 2×2 block of pixels becomes four channels (Dinh et al. 2017, section 3.6). Latent channel 4c + 2i + j is data
    channel c at row i, column j of the blocks.

    >>> Squeeze()(torch.zeros(5, 3, 4, 6))[0].shape
    torch.Size([5, 12, 2, 3])
    """

    reversible = True

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent."""
        blocks = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (batch, channels, rows, i, columns, j)
        return blocks.permute(0, 1, 3, 5, 2, 4).flatten(1, 3), zero_log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data."""
        blocks = z.unflatten(1, (-1, 2, 2))  # (batch, channels, i, j, rows, columns)
        return blocks.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3), zero_log_det(z)

    def latent_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape with four times the channels at half the resolution.

        Raises:
            ValueError: if height or width is odd.
        """
        channels, height, width = event_shape
        if height % 2 or width % 2:
            raise ValueError(f"a squeeze needs an even height and width, got {height}×{width}")
        return 4 * channels, height // 2, width // 2


class InvertibleConv1x1(Bijection):
    """Invertible 1×1 convolution: a learned linear map of the channels, parameterised by its LU decomposition.

    Kingma & Dhariwal, "Glow", 2018 (arXiv:1807.03039), section 3.2, equation 10: W = P · L · (U + diag(s)), with fixed
    permutation P and sign(s), so log|det| is height · width · Σ log|s|. The initial map is a random rotation.

    Args:
        channels: number of channels.

    >>> convolution = InvertibleConv1x1(3)
    >>> z, log_det = convolution(torch.randn(2, 3, 4, 4))
    >>> z.shape, log_det.shape
    (torch.Size([2, 3, 4, 4]), torch.Size([2]))
    """

    reversible = True

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
        """Return L with its unit diagonal, and U + diag(s)."""
        identity = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        return self.lower.tril(-1) + identity, self.upper.triu(1) + torch.diag(self.sign * self.log_scale.exp())

    def weight(self) -> Float[Tensor, "channels channels"]:
        """Return the matrix W of data → latent."""
        lower, upper = self._factors()
        return self.permutation @ lower @ upper

    def inverse_weight(self) -> Float[Tensor, "channels channels"]:
        """Return the matrix W⁻¹ of latent → data, by two triangular solves.

        Raises:
            UserError: if W is singular to the precision of its numbers; not checked in compiled and transformed code.
        """
        lower, upper = self._factors()
        half = torch.linalg.solve_triangular(lower, self.permutation.T, upper=False, unitriangular=True)
        inverse = torch.linalg.solve_triangular(upper, half, upper=True)
        if not torch.compiler.is_compiling() and not is_transformed():
            self._check_condition(inverse.detach())
        return inverse

    def _check_condition(self, inverse: Tensor) -> None:
        """Raise UserError if rounding makes the round trip x → W x → x wrong.

        Its error is at most ε · |W⁻¹| |W| |x| (Higham 2002, "Accuracy and stability of numerical algorithms", section
        7.2), in numbers of precision ε.
        """
        if not self.log_scale.numel():
            return
        error = torch.finfo(inverse.dtype).eps * float((inverse.abs() @ self.weight().detach().abs()).amax())
        if not error <= _LARGEST_INVERSION_ERROR:
            raise UserError(
                f"{type(self).__name__} is too near to a singular matrix to be inverted in {inverse.dtype} (smallest "
                f"log-scale {float(self.log_scale.min()):.1f}, error of the inverse {error:.1e}): use flow.double(), "
                "or a checkpoint from before training diverged"
            )

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent."""
        with full_precision(x):
            return _mix_channels(self.weight(), x), zero_log_det(x) + sites(x) * self.log_scale.sum()

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data."""
        with full_precision(z):
            return _mix_channels(self.inverse_weight(), z), zero_log_det(z) - sites(z) * self.log_scale.sum()


class NormalizedConv1x1(Bijection):
    """Activation normalisation followed by an invertible 1×1 convolution, in one pass over the data.

    Kingma & Dhariwal 2018 (arXiv:1807.03039), the first two parts of a step of flow (figure 2a): the same map as
    ``Chain(ActNorm(channels), InvertibleConv1x1(channels))``, z = W · (x · exp(s) + b).

    Args:
        channels: number of channels.

    >>> NormalizedConv1x1(3)(torch.randn(2, 3, 4, 4))[0].shape
    torch.Size([2, 3, 4, 4])
    """

    reversible = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ActNorm(channels)
        self.conv = InvertibleConv1x1(channels)

    def initialize_from(self, x: Float[Tensor, "batch channels height width"]) -> None:
        """Set scale and shift to normalise ``x``; see `ActNorm`."""
        self.norm.initialize_from(x)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent."""
        with full_precision(x):
            weight = self.conv.weight()
            return _mix_channels(weight * self.norm.log_scale.exp(), x, weight @ self.norm.shift), self._log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data."""
        with full_precision(z):
            scale = (-self.norm.log_scale).exp()
            weight = scale[:, None] * self.conv.inverse_weight()
            return _mix_channels(weight, z, -scale * self.norm.shift), -self._log_det(z)

    def _log_det(self, values: Tensor) -> Tensor:
        return zero_log_det(values) + sites(values) * (self.norm.log_scale.sum() + self.conv.log_scale.sum())


def _mix_channels(
    matrix: Float[Tensor, "channels channels"],
    values: Float[Tensor, "batch channels height width"],
    bias: Float[Tensor, " channels"] | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Multiply the channels of every pixel by a matrix and add a bias.

    A batched matrix product is several times faster than a convolution of so few channels.
    """
    pixels = values.flatten(2)
    if bias is None:
        return torch.matmul(matrix, pixels).view(values.shape)
    return torch.baddbmm(bias[:, None], matrix.expand(pixels.shape[0], -1, -1), pixels).view(values.shape)
