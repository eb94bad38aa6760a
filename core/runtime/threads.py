"""Threads that share the work on a CPU: of compiled loops, of parts of a batch, and of the BLAS."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier, Lock, Thread
from typing import Any

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor


def map_parts(
    work: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]], x: Tensor, context: Tensor | None, size: int
) -> tuple[Tensor, Tensor]:
    """Apply ``work`` to parts of a batch in inference mode, on as many threads as PyTorch uses, and join the results.

    Args:
        work: A function of a part of the batch and its context; both results have a row for each example.
        x: The batch, (batch, …).
        context: A row for each example, or one row for all.
        size: The largest number of examples of a part.

    Returns:
        The results for the whole batch, usable in autograd.
    """
    threads, count = torch.get_num_threads(), max(1, -(-len(x) // size))
    if count > 1:  # an equal number of parts for each thread
        count += -count % min(threads, count)
    parts = x.tensor_split(count)
    contexts: list[Tensor | None] = [context] * count
    if context is not None and count > 1:
        contexts = list(context.expand(len(x), *context.shape[1:]).tensor_split(count))

    def run(part: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():  # the bookkeeping of autograd is a good part of the cost of a small step
            return work(part, own)

    workers = min(threads, count)
    if workers == 1:
        results = list(map(run, parts, contexts))
    else:
        ready = Barrier(workers + 1)

        def begin() -> None:
            torch.set_num_threads(threads // workers)
            torch.get_num_threads()  # PyTorch keeps the number per thread from its first read on: read it now
            ready.wait(timeout=60)

        with ThreadPoolExecutor(workers, initializer=begin) as pool:
            running = [pool.submit(run, *each) for each in zip(parts, contexts, strict=True)]
            ready.wait(timeout=60)
            torch.set_num_threads(threads)  # for threads that others start
            results = [each.result() for each in running]
    first, second = (torch.cat(each) for each in zip(*results, strict=True))  # no inference tensors
    return first, second


def in_shares(loop: Callable[..., None], count: int, least: int, *arguments: Any) -> None:
    """Run ``loop(share, start, stop, *arguments)`` over 0 … ``count`` − 1, on as many threads as PyTorch uses.

    Args:
        loop: A compiled function; its first argument is the number of its share.
        count: The number of items.
        least: The least number of items that is worth a thread.
        *arguments: Further arguments, the same for all shares.
    """
    shares = max(1, min(torch.get_num_threads(), count // least))
    edges = [count * share // shares for share in range(shares + 1)]
    errors: list[BaseException] = []

    def run(share: int) -> None:
        try:
            loop(share, edges[share], edges[share + 1], *arguments)
        except BaseException as error:
            errors.append(error)

    others = [Thread(target=run, args=(share,)) for share in range(1, shares)]
    for thread in others:
        thread.start()
    run(0)
    for thread in others:
        thread.join()
    if errors:
        raise errors[0]


@functools.cache
def _blas() -> ThreadpoolController:
    import scipy.linalg.cython_blas  # noqa: F401, the BLAS of compiled loops

    return ThreadpoolController().select(user_api="blas")


class _Multiplying:
    """Number of active `multiplying` blocks, and the limiter to restore when it drops to zero."""

    lock = Lock()
    inside = 0
    limiter: Any = None


@contextmanager
def multiplying() -> Iterator[None]:
    """Keep matrix products of compiled loops (`numpy.dot`) within the block in the thread that runs them.

    A BLAS has one number of threads for the process. The first block that is entered sets it to one, and the last that
    is left restores it.
    """
    state = _Multiplying
    with state.lock:
        if not state.inside:
            state.limiter = _blas().limit(limits=1)
        state.inside += 1
    try:
        yield
    finally:
        with state.lock:
            state.inside -= 1
            if not state.inside:
                state.limiter.restore_original_limits()
