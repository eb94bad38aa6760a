"""Loops that numba compiles at their first use, some seconds each, kept on disk.

numba compiles a loop anew when its own file changes. After a change of what loops of other files call here,
`make clean` removes what they keep.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, Thread
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from filelock import FileLock
from numba import types
from numba.core.caching import IndexDataCacheFile
from numba.extending import overload
from threadpoolctl import ThreadpoolController

Function = TypeVar("Function", bound=Callable[..., Any])

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}
"""Sums keep their order and numbers that are not numbers stay none."""


def _one_process_at_a_time(method: Function) -> Function:
    """The method of numba's cache of a function, under a lock in the file system.

    The index of what was compiled for which types is read, extended and written back. Where two processes do so at
    once, machine code ends under the types of another, and whoever takes it crashes or computes something else.
    """

    @functools.wraps(method)
    def locked(cache: Any, *words: Any) -> Any:
        lock = FileLock(f"{cache._index_path}.lock", timeout=60)
        try:
            lock.acquire()
        except (OSError, NotImplementedError):  # a folder that may only be read, one without locks, a holder that hangs
            return method(cache, *words)
        try:
            return method(cache, *words)
        finally:
            lock.release()

    return locked  # type: ignore[return-value]


# For functions of other libraries too, such as librosa's.
if not hasattr(IndexDataCacheFile.save, "__wrapped__"):
    IndexDataCacheFile.save = _one_process_at_a_time(IndexDataCacheFile.save)  # type: ignore[method-assign]
    IndexDataCacheFile.load = _one_process_at_a_time(IndexDataCacheFile.load)  # type: ignore[method-assign]


def compiled(function: Function) -> Function:
    """The function, compiled for the types it is called with."""
    return _compiled(function, OPTIONS)


def compiled_summing(function: Function) -> Function:
    """The same of a function whose sums may be taken in any order, many numbers at a time."""
    return _compiled(function, OPTIONS | {"fastmath": OPTIONS["fastmath"] | {"reassoc"}})


def compiled_comparing(function: Function) -> Function:
    """The same of a function that compares numbers in any order; what it says of what is no number is undefined."""
    return _compiled(function, OPTIONS | {"fastmath": OPTIONS["fastmath"] | {"reassoc", "nnan"}})


def _compiled(function: Function, options: dict[str, Any]) -> Function:
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that compiled code could be kept in may be written
        return numba.njit(**options)(function)


def in_shares(loop: Callable[..., None], count: int, least: int, *arguments: Any) -> None:
    """Runs ``loop(share, start, stop, *arguments)`` over 0 … ``count`` − 1, on as many threads as PyTorch takes.

    Args:
        loop: A compiled function; it gets the number of its share.
        count: How much there is to do.
        least: A thread takes no less.
        *arguments: Given to all.
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
    import scipy.linalg.cython_blas  # noqa: F401, what compiled loops multiply matrices by

    return ThreadpoolController().select(user_api="blas")


class _Multiplying:
    """Number of threads inside `multiplying`, and the limit to lift when the last one leaves."""

    lock = Lock()
    inside = 0
    limiter: Any = None


@contextmanager
def multiplying() -> Iterator[None]:
    """Restrict `numpy.dot` of compiled loops to the thread that runs them.

    The number of threads of a BLAS is that of the process. Who enters first notes it, who leaves last gives it back.
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


@compiled
def add_products(total: Any, weights: Any, inputs: Any, first: int, last: int, left: int, right: int) -> None:
    """Adds Σ weights_k · inputs_kj to total_j, k from first and j from left on; eight k at a time touch sums seldom."""
    whole = last - (last - first) % 8
    for k in range(first, whole, 8):
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        w4, w5, w6, w7 = weights[k + 4], weights[k + 5], weights[k + 6], weights[k + 7]
        for j in range(np.uintp(left), np.uintp(right)):
            total[j] += (w0 * inputs[k, j] + w1 * inputs[k + 1, j] + w2 * inputs[k + 2, j] + w3 * inputs[k + 3, j]) + (
                w4 * inputs[k + 4, j] + w5 * inputs[k + 5, j] + w6 * inputs[k + 6, j] + w7 * inputs[k + 7, j]
            )
    for k in range(whole, last):
        weight = weights[k]
        for j in range(np.uintp(left), np.uintp(right)):
            total[j] += weight * inputs[k, j]


def exp_minus_twice(number: Any) -> Any:
    """exp(−2x), with x held within ±20; for compiled functions, which take many at a time in float32."""
    raise TypeError("a number of a compiled loop")


@overload(exp_minus_twice, jit_options=OPTIONS)  # type: ignore[arg-type]
def _exp_minus_twice_of(number: Any) -> Any:
    def in_float64(number: Any) -> Any:
        return math.exp(-2 * (-20.0 if number < -20.0 else 20.0 if number > 20.0 else number))

    # 2^k · exp(r), with the integer k taken from the last bits of a large number that −2x / ln 2 was added to, and the
    # exponential of |r| ≤ ½ ln 2 by its series, to 1e-7.
    def in_float32(number: Any) -> Any:
        low, high = np.float32(-20), np.float32(20)
        number = low if number < low else number
        number = high if number > high else number
        twice = np.float32(-2) * number
        shifted = twice * np.float32(1 / math.log(2)) + np.float32(3 << 22)
        rest = twice - (shifted - np.float32(3 << 22)) * np.float32(math.log(2))
        series = np.float32(1 / 720) * rest + np.float32(1 / 120)
        series = series * rest + np.float32(1 / 24)
        series = series * rest + np.float32(1 / 6)
        series = series * rest + np.float32(1 / 2)
        series = series * rest + np.float32(1)
        series = series * rest + np.float32(1)
        scale = np.uint32((np.float32(shifted).view(np.uint32) << np.uint32(23)) + np.uint32(0x3F800000))
        return series * scale.view(np.float32)

    return in_float64 if number is types.float64 else in_float32
