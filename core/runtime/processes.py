"""Several processes at one task: who of them writes, which share each takes, and noise that does not depend on either.

Training is distributed by Lightning. Every other verb becomes distributed by starting it in several processes::

    torchrun --nproc-per-node 4 --no-python arflows vision sample --model runs/glow --out samples --count 50000

Each process takes batches in turn (`distributed_map`), results come back to all in order, and the main process alone
writes (`core.runtime.files` asks `is_main`). What is random follows from the seed and the place of an example or batch
(`seed_of`), so that the number of processes changes nothing but the time.
"""

import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Rank:
    """The place of this process among those at one task.

    Attributes:
        rank: Its number, from 0.
        count: How many they are.
    """

    rank: int = 0
    count: int = 1


_verb = Rank()
"""Of the verb that this process runs together with others; see `distributed_session`."""

_rows = Rank()
"""Of the training batch at hand; see `batch_shard`."""


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return _verb.rank == 0


def wait() -> None:
    """Returns when all processes at the task have come here."""
    if _verb.count > 1:
        from torch import distributed

        distributed.barrier()


def local_rank() -> int | None:
    """The number of this process among those of its machine, which picks its GPU; None where it works alone."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _verb.count > 1 else None


def cores() -> int:
    """How many processor cores this process may use: those it is bound to, divided among its machine's at the task."""
    return max(1, len(os.sched_getaffinity(0)) // (int(os.environ["LOCAL_WORLD_SIZE"]) if _verb.count > 1 else 1))


@contextmanager
def distributed_session() -> Iterator[None]:
    """Joins the processes that ``torchrun`` started with this one, if it did; until the block ends they work together.

    Within an outer block this does nothing.
    """
    global _verb
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or _verb.count > 1 or "MASTER_ADDR" not in os.environ:
        yield
        return
    from torch import distributed

    distributed.init_process_group("gloo")
    _verb = Rank(distributed.get_rank(), count)
    try:
        yield
    finally:
        _verb = Rank()
        distributed.destroy_process_group()


@contextmanager
def destroy_process_group_on_exit() -> Iterator[None]:
    """Dissolves the group of processes that was formed within the block when that ends, however it ends.

    Lightning leaves this to the end of the interpreter, whose last moments the group's threads may not outlive: they
    would bring the process down after all is done.
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
        work: Returns values and tensors on the CPU, for they travel between processes.
    """
    return distributed_imap(enumerate(items), lambda share: (work(index, item) for index, item in share))


def distributed_imap(items: Iterable[Item], work: Callable[[Iterator[Item]], Iterator[Result]]) -> Iterator[Result]:
    """Yields what ``work`` makes of the items, in order, in every process; it gets every ``count``-th of them in each.

    As `distributed_map`, for work that begins with items before it is done with those that came earlier.

    Args:
        items: The same in every process, and read whole by each of them.
        work: Yields a result for each item it gets, in order.
    """
    if _verb.count == 1:
        yield from work(iter(items))
        return
    from torch import distributed

    results = work(islice(items, _verb.rank, None, _verb.count))
    gathered: list[list[Result]] = []
    while all(gathered):
        gathered = [[] for _ in range(_verb.count)]
        distributed.all_gather_object(gathered, list(islice(results, 1)))
        for result in gathered:
            yield from result
    next(results, None)  # reads the rest of the items, of which there are fewer than processes


def seed_of(seed: int, index: int) -> int:
    """The seed of a step's, batch's or example's noise: 63 bits that follow from the seed of all and its place."""
    return random.Random(f"{seed}/{index}").getrandbits(63)


@contextmanager
def batch_shard(rank: int, count: int) -> Iterator[None]:
    """Says that batches are every ``count``-th row, from ``rank``, of one batch that several processes share."""
    global _rows
    before, _rows = _rows, Rank(rank, count)
    try:
        yield
    finally:
        _rows = before


def world_size() -> int:
    """How many processes share the training batch at hand."""
    return _rows.count


def noise_rows(draw: Callable[..., "Tensor"], shape: tuple[int, ...], **options: Any) -> "Tensor":
    """Noise of a batch: this process's rows of what one process alone would have drawn for all of them.

    Args:
        draw: `torch.rand` or `torch.randn`.
        shape: Of this process's batch, (batch, …).
        **options: More arguments of ``draw``.
    """
    if world_size() == 1:
        return draw(shape, **options)
    return draw((shape[0] * _rows.count, *shape[1:]), **options)[_rows.rank :: _rows.count]


def batch_statistics(mean: "Tensor", variance: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Mean and (biased) variance of a training batch, of those of this process's share; gradients pass through.

    Processes exchange both at once: what takes time of so few numbers is that they wait for each other.
    """
    if world_size() == 1:
        return mean, variance
    import torch
    from torch.distributed.nn.functional import all_reduce

    mine = torch.stack([mean, variance])
    nothing = torch.zeros_like(mine)
    shares = torch.stack([mine if rank == _rows.rank else nothing for rank in range(_rows.count)])
    means, variances = all_reduce(shares).unbind(1)
    over_all = means.mean(0)
    return over_all, (variances + (means - over_all).square()).mean(0)
