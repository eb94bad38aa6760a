"""Distribution of one task over several processes: the share of each, and the one that writes.

Training is distributed by Lightning. Every other verb becomes distributed by starting it in several processes::

    torchrun --nproc-per-node 4 --no-python arflows vision sample --model runs/glow --out samples --count 50000

Each process takes batches in turn (`distributed_map`), results come back to all in order, and the main process alone
writes (`core.runtime.files` asks `is_main`). Random numbers follow from the seed and the index of an example or batch
(`core.runtime.noise`), so that the number of processes changes nothing but the time.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Rank:
    """The rank of this process among those at one task.

    Attributes:
        rank: Its number, from 0.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1


@dataclass
class _Groups:
    """The two groups of processes that this one may be in.

    They belong to the process, not to a context or thread: threads that write files, and those of autograd, ask too.

    Attributes:
        command: Its rank in the command that several processes run, see `distributed_session`.
        batch: Its rank among those that share the current training batch, see `batch_shard`.
    """

    command: Rank = Rank()
    batch: Rank = Rank()


_groups = _Groups()


def is_main() -> bool:
    """True if this process is the one that writes and prints."""
    return _groups.command.rank == 0


def wait() -> None:
    """Returns when all processes at the task have called it."""
    if _groups.command.count > 1:
        from torch import distributed

        distributed.barrier()


def local_rank() -> int | None:
    """Number of this process on its machine, which selects its GPU; None if it works alone."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _groups.command.count > 1 else None


def cores() -> int:
    """Number of processor cores for this process: those it is bound to, divided among its machine's at the task."""
    # macOS and Windows bind no process to cores that it could ask for.
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, bound // (int(os.environ["LOCAL_WORLD_SIZE"]) if _groups.command.count > 1 else 1))


@contextmanager
def distributed_session() -> Iterator[None]:
    """Joins the processes that ``torchrun`` started, if it started this one, until the block ends.

    Within an outer block this does nothing.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or _groups.command.count > 1 or "MASTER_ADDR" not in os.environ:
        yield
        return
    from torch import distributed

    distributed.init_process_group("gloo")
    _groups.command = Rank(distributed.get_rank(), count)
    try:
        yield
    finally:
        _groups.command = Rank()
        distributed.destroy_process_group()


@contextmanager
def destroy_process_group_on_exit() -> Iterator[None]:
    """Destroys a process group that was formed within the block when the block ends, also by an exception.

    Lightning leaves this to the end of the interpreter, during which threads of the group can crash the process.
    """
    from torch import distributed

    before = distributed.is_initialized()
    try:
        yield
    finally:
        if distributed.is_initialized() and not before:
            distributed.destroy_process_group()


def distributed_map(items: Iterable[Item], work: Callable[[int, Item], Result]) -> Iterator[Result]:
    """Yields ``work(index, item)`` for every item, in order, in every process; each does every ``count``-th of them.

    Args:
        items: The same in every process, and read whole by each of them.
        work: Returns values and tensors on the CPU, which are sent between processes.
    """
    return distributed_imap(enumerate(items), lambda share: (work(index, item) for index, item in share))


def distributed_imap(items: Iterable[Item], work: Callable[[Iterator[Item]], Iterator[Result]]) -> Iterator[Result]:
    """Yields what ``work`` makes of the items, in order, in every process; it gets every ``count``-th of them in each.

    Like `distributed_map`, for work that starts on items before it has finished earlier ones.

    Args:
        items: The same in every process, and read whole by each of them.
        work: Yields a result for each item it gets, in order.
    """
    if _groups.command.count == 1:
        yield from work(iter(items))
        return
    from torch import distributed

    results = work(islice(items, _groups.command.rank, None, _groups.command.count))
    gathered: list[list[Result]] = []
    while all(gathered):
        gathered = [[] for _ in range(_groups.command.count)]
        distributed.all_gather_object(gathered, list(islice(results, 1)))
        for result in gathered:
            yield from result
    next(results, None)  # reads the remaining items, fewer than there are processes


@contextmanager
def batch_shard(rank: int, count: int) -> Iterator[None]:
    """Says that batches are every ``count``-th row, from ``rank``, of one batch that several processes share."""
    before, _groups.batch = _groups.batch, Rank(rank, count)
    try:
        yield
    finally:
        _groups.batch = before


def batch_rank() -> Rank:
    """The rank of this process among those that share the current training batch."""
    return _groups.batch


def world_size() -> int:
    """Number of processes that share the current training batch."""
    return _groups.batch.count


def batch_statistics(mean: "Tensor", variance: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Mean and (biased) variance of a training batch, of those of this process's share; gradients pass through.

    Processes exchange both at once, since the latency of an exchange outweighs its size.
    """
    if world_size() == 1:
        return mean, variance
    import torch
    from torch.distributed.nn.functional import all_reduce

    mine = torch.stack([mean, variance])
    nothing = torch.zeros_like(mine)
    shares = torch.stack([mine if rank == _groups.batch.rank else nothing for rank in range(_groups.batch.count)])
    means, variances = all_reduce(shares).unbind(1)
    over_all = means.mean(0)
    return over_all, (variances + (means - over_all).square()).mean(0)
