"""Batch normalisation of features by the statistics of a training batch that processes may share."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from arflows.core.runtime.processes import batch_statistics, world_size
from arflows.core.runtime.torch_compat import batch_moments, normalize_batch, normalize_batch_backward


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` that uses the statistics of the whole training batch if several processes share it.

    In training mode without gradients it uses its running averages and leaves them as they are.

    >>> BatchNorm2d(3)(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Normalise by the batch in a training step; by running averages in evaluation mode and without gradients."""
        if self.training and not torch.is_grad_enabled():
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        if not self.training or world_size() == 1:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        normalized, mean, variance = _normalize(x.float(), self.weight, self.bias, self.eps)
        values = world_size() * x.numel() / x.shape[1]
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance * values / (values - 1), self.momentum or 0.0)
        return normalized.to(x.dtype)


@torch.compiler.disable
def _normalize(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised features, and the biased mean and variance over all processes."""
    return _SharedNormalization.apply(x, weight, bias, epsilon)


class _SharedNormalization(torch.autograd.Function):
    """PyTorch's batch-normalisation kernels with sums over all processes; first derivatives only.

    The same in tensor operations takes seven times as long on a CPU, where reductions over pixels are slow.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = batch_statistics(*batch_moments(x))
        normalized = normalize_batch(x, weight, bias, mean, variance, epsilon)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.epsilon = epsilon
        ctx.values = world_size() * x.numel() // x.shape[1]
        ctx.mark_non_differentiable(mean, variance)
        return normalized, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, variance = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = normalize_batch_backward(gradient, x, weight, mean, variance, ctx.epsilon)
        means = torch.stack([grad_weight, grad_bias])
        distributed.all_reduce(means)
        along_normalized, along_one = means / ctx.values
        scale = (variance + ctx.epsilon).rsqrt()
        slope = -weight * scale.square() * along_normalized
        offset = -weight * scale * along_one - slope * mean
        grad_x = torch.addcmul(grad_x, x, slope[:, None, None]).add_(offset[:, None, None])
        return grad_x, grad_weight, grad_bias, None
