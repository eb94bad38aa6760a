"""Private and undocumented API of PyTorch, in one place.

``pyproject.toml`` admits only the versions of PyTorch for which this is known to be true; a test checks each
assumption (``tests/core/runtime/test_torch_compat.py``).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Return True inside a transform of `torch.func` (vmap, grad, jvp, …) and during forward-mode differentiation.

    Code that reads values or leaves PyTorch then has to use plain operations instead. In compiled code it is False: the
    compiler has traced the transform already.

    >>> torch.func.vmap(lambda x: x + is_transformed())(torch.zeros(2))
    tensor([1., 1.])
    >>> is_transformed()
    False
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def lerp_all_(tensors: list[Tensor], ends: list[Tensor], weight: float) -> None:
    """Replace each tensor by ``tensor + weight · (end − tensor)``, all of them in one call.

    Args:
        tensors: Tensors to change in place.
        ends: Tensors of the same shapes, reached at weight 1.
        weight: Weight of the ends, in [0, 1].
    """
    torch._foreach_lerp_(tensors, ends, weight)


def copy_all_(tensors: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each source into its tensor, all of them in one call."""
    torch._foreach_copy_(tensors, sources)


def batch_moments(
    x: Float[Tensor, "batch channels *positions"],
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Return the mean and the biased variance of each channel by PyTorch's kernel."""
    mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
    return mean, variance


def normalize_batch(
    x: Float[Tensor, "batch channels *positions"],
    weight: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    mean: Float[Tensor, " channels"],
    variance: Float[Tensor, " channels"],
    epsilon: float,
) -> Float[Tensor, "batch channels *positions"]:
    """Return ``(x − mean) / sqrt(variance + epsilon) · weight + bias`` by PyTorch's kernel.

    Args:
        x: The batch.
        weight: A factor for each channel.
        bias: A summand for each channel.
        mean: Means to subtract.
        variance: Variances to divide by.
        epsilon: Added to the variances.
    """
    return torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, epsilon)[0]


def normalize_batch_backward(
    gradient: Float[Tensor, "batch channels *positions"],
    x: Float[Tensor, "batch channels *positions"],
    weight: Float[Tensor, " channels"],
    mean: Float[Tensor, " channels"],
    variance: Float[Tensor, " channels"],
    epsilon: float,
) -> tuple[Float[Tensor, "batch channels *positions"], Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Return the gradients of `normalize_batch` with respect to x, weight and bias, statistics held fixed.

    Args:
        gradient: With respect to the result.
        x: As given to `normalize_batch`.
        weight: As given to `normalize_batch`.
        mean: As given to `normalize_batch`.
        variance: As given to `normalize_batch`.
        epsilon: As given to `normalize_batch`.
    """
    grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
        gradient, x, weight, mean, variance, None, None, False, epsilon, [True, True, True]
    )
    return grad_x, grad_weight, grad_bias
