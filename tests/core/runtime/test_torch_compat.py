"""Assumptions about PyTorch's private and undocumented API."""

import pytest
import torch

from arflows.core.runtime import torch_compat


@pytest.mark.report
def test_transforms_are_noticed():
    seen = []

    def square(x):
        seen.append(torch_compat.is_transformed())
        return x.square().sum()

    x = torch.randn(3, 2)
    square(x)
    torch.func.vmap(square)(x)
    torch.func.grad(square)(x)
    torch.func.jvp(square, (x,), (x,))
    assert seen == [False, True, True, True]
    assert not torch_compat.is_transformed()


@pytest.mark.report
def test_forward_mode_differentiation_is_noticed():
    with torch.autograd.forward_ad.dual_level():
        assert torch_compat.is_transformed()
    assert not torch_compat.is_transformed()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_tensors_are_interpolated_and_copied_in_place(dtype):
    tensors, ends = ([torch.randn(size, dtype=dtype) for size in (2, 5)] for _ in range(2))
    expected = [tensor + 0.25 * (end - tensor) for tensor, end in zip(tensors, ends, strict=True)]
    torch_compat.lerp_all_(tensors, ends, 0.25)
    for tensor, wanted in zip(tensors, expected, strict=True):
        torch.testing.assert_close(tensor, wanted)
    torch_compat.copy_all_(tensors, ends)
    assert all(torch.equal(tensor, end) for tensor, end in zip(tensors, ends, strict=True))


def test_batch_kernels_compute_what_they_say():
    x = torch.randn(4, 3, 5, 2, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mean, variance = torch_compat.batch_moments(x.detach())
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(variance, x.var((0, 2, 3), correction=0))
    mean, variance = torch.randn(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    rows = (slice(None), None, None)
    expected = (x - mean[rows]) / (variance[rows] + 0.1).sqrt() * weight[rows] + bias[rows]
    found = torch_compat.normalize_batch(x.detach(), weight.detach(), bias.detach(), mean, variance, 0.1)
    torch.testing.assert_close(found, expected.detach())
    gradient = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, (x, weight, bias), gradient)
    for ours, theirs in zip(
        torch_compat.normalize_batch_backward(gradient, x.detach(), weight.detach(), mean, variance, 0.1),
        gradients,
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
