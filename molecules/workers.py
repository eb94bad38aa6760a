"""Pool of processes for RDKit, which holds Python's global lock."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

from arflows.core.runtime.processes import cores, distributed_imap

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 500
"""Molecules that go to a process at a time."""


class Workers:
    """Processes that apply a function to chunks of items: ``with Workers(2) as workers: workers.map(f, chunks)``.

    They are started at first use and are not forked, because threads do not survive a fork. Where
    several processes work together (`arflows.core.runtime.processes`) each has its own, and all share the chunks.
    """

    def __init__(self, count: int | None = None) -> None:
        """Set the number of processes.

        Args:
            count: Processes; 1 does all work in this one, None takes one for each core this process may use.
        """
        self.count = cores() if count is None else count
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None

    def map(self, function: Callable[..., Result], chunks: Iterable[Item], *arguments: Any) -> Iterator[Result]:
        """Yield ``function(chunk, *arguments)`` for each chunk, in order; few chunks are in memory at a time.

        Args:
            function: A function of a module.
            chunks: Its first arguments; the same in all processes that work together.
            arguments: Given to each call.
        """
        return distributed_imap(chunks, lambda share: self.map_here(function, share, *arguments))

    def map_here(self, function: Callable[..., Result], chunks: Iterable[Item], *arguments: Any) -> Iterator[Result]:
        """Apply a function as `map` does, to the chunks of this process alone."""
        if self.count == 1:
            yield from (function(chunk, *arguments) for chunk in chunks)
            return
        if self._executor is None:
            self._executor = ProcessPoolExecutor(self.count, multiprocessing.get_context("spawn"), _begin)
        pending: deque[Future[Result]] = deque()
        for chunk in chunks:
            pending.append(self._executor.submit(function, chunk, *arguments))
            if len(pending) >= 4 * self.count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by the parent, which ends them


def chunked(items: Iterable[Item], size: int = CHUNK) -> Iterator[Sequence[Item]]:
    """Yield lists of ``size`` items; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
