"""Compilation of loops by numba at their first use, some seconds each, with the machine code kept on disk.

numba compiles a loop again when its own file changes. After a change of a function that loops of other files call,
`make clean` removes their machine code.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numba
from filelock import FileLock
from numba.core.caching import IndexDataCacheFile

Function = TypeVar("Function", bound=Callable[..., Any])

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}
"""Options of numba; the fast-math flags keep the order of sums, and NaNs."""


def _one_process_at_a_time(method: Function) -> Function:
    """Put a method of numba's cache under a lock in the file system.

    The index from argument types to machine code is read, extended and written back. If two processes do so at once,
    machine code is filed under the wrong types, and a process that loads it crashes or computes something else.
    """

    @functools.wraps(method)
    def locked(cache: Any, *arguments: Any) -> Any:
        lock = FileLock(f"{cache._index_path}.lock", timeout=60)
        try:
            lock.acquire()
        except (OSError, NotImplementedError):  # a read-only folder, one without locks, a holder that hangs
            return method(cache, *arguments)
        try:
            return method(cache, *arguments)
        finally:
            lock.release()

    return locked  # type: ignore[return-value]


# For functions of other libraries too, such as librosa's.
if not hasattr(IndexDataCacheFile.save, "__wrapped__"):
    IndexDataCacheFile.save = _one_process_at_a_time(IndexDataCacheFile.save)  # type: ignore[method-assign]
    IndexDataCacheFile.load = _one_process_at_a_time(IndexDataCacheFile.load)  # type: ignore[method-assign]


def compiled(function: Function) -> Function:
    """Compile a function for the types that it is called with."""
    return _compiled(function, OPTIONS)


def compiled_summing(function: Function) -> Function:
    """Like `compiled`, but sums may be taken in any order, which lets them be vectorised."""
    return _compiled(function, OPTIONS | {"fastmath": OPTIONS["fastmath"] | {"reassoc"}})


def compiled_comparing(function: Function) -> Function:
    """Like `compiled_summing`, but assumes that there are no NaNs; the result for a NaN is undefined."""
    return _compiled(function, OPTIONS | {"fastmath": OPTIONS["fastmath"] | {"reassoc", "nnan"}})


def _compiled(function: Function, options: dict[str, Any]) -> Function:
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for the machine code is writable
        return numba.njit(**options)(function)
