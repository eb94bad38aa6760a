"""Batch normalisation over two processes, equal to one."""

import pytest
import torch
from torch import distributed, multiprocessing

from arflows.core.conditioners.batch_norm import BatchNorm2d
from arflows.core.runtime.processes import batch_shard


def layer():
    torch.manual_seed(0)
    norm = BatchNorm2d(3, eps=1e-4)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    return norm


def batch(layout):
    torch.manual_seed(1)
    x = 4 * torch.randn(6, 3, 5, 4) + torch.tensor([0.0, 100.0, -7.0])[:, None, None]
    return x.contiguous(memory_format=layout), torch.randn(6, 3, 5, 4)


def pulled(norm, x, pull):
    """The output, and gradients of its product with ``pull``."""
    x = x.detach().requires_grad_()
    y = norm(x)
    (y * pull).sum().backward()
    return y.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var


def share(rank, folder, layout):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    x, pull = batch(layout)
    with batch_shard(rank, 2):
        torch.save(pulled(layer(), x[rank::2].contiguous(memory_format=layout), pull[rank::2]), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_two_processes_normalise_as_one(tmp_path, layout):
    multiprocessing.spawn(share, (str(tmp_path), layout), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    whole = pulled(layer(), *batch(layout))
    for rank, part in enumerate((first, second)):
        for index in (0, 1):  # outputs and gradients of the inputs, example by example
            torch.testing.assert_close(part[index], whole[index][rank::2], rtol=1e-4, atol=1e-4)
        for index in (4, 5):
            torch.testing.assert_close(part[index], whole[index], rtol=1e-5, atol=1e-5)
    for index in (2, 3):
        torch.testing.assert_close(first[index] + second[index], whole[index], rtol=1e-4, atol=1e-3)
