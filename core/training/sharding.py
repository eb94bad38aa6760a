"""Sharded weights (FSDP): gathering them, and norms of their gradients."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor


def is_sharded(trainer: Trainer) -> bool:
    """True if each process holds only a part of every weight and gradient."""
    return isinstance(trainer.strategy, FSDPStrategy)


@contextmanager
def whole_weights(trainer: Trainer) -> Iterator[None]:
    """Gathers all weights in every process, for reading; all processes must enter the block."""
    if not is_sharded(trainer):
        yield
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    assert isinstance(trainer.strategy.model, FullyShardedDataParallel)
    with FullyShardedDataParallel.summon_full_params(trainer.strategy.model, writeback=False):
        yield


def total_norm(trainer: Trainer, gradients: list[Tensor]) -> Tensor:
    """Norm of the averaged gradients, whole or sharded; the same in every process."""
    norm = torch.nn.utils.get_total_norm(gradients)
    if not is_sharded(trainer):
        return norm
    total = trainer.strategy.reduce(norm.to(trainer.strategy.root_device).square(), reduce_op="sum")
    assert isinstance(total, Tensor)
    return total.sqrt()
