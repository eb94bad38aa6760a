"""Sampling in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from arflows.core.runtime.processes import distributed_imap
from arflows.molecules.records import Generated, Targets
from arflows.molecules.workers import Workers

Result = TypeVar("Result")

Stretch = tuple[int, int, "Tensor | Targets | None"]
"""Molecules to draw: the number of the first, how many, and their wanted properties."""


class Generates(Protocol):
    """A flow that draws graphs; see `arflows.molecules.graph_flow.GraphFlow`."""

    @property
    def device(self) -> torch.device:
        """Device on which it draws."""

    @property
    def generate(self) -> Callable[..., Iterator[Generated]]:
        """Draws graphs, a batch at a time."""


def draw_batches(
    flow: Generates,
    finish: Callable[..., Result],
    count: int,
    context: Float[Tensor, "count properties"] | Targets | None = None,
    *arguments: Any,
    workers: Workers,
    first: int = 0,
    batch_size: int = 512,
    **options: Any,
) -> Iterator[Result]:
    """Draws graphs and yields what ``finish(batch, *arguments)`` makes of each batch, in order.

    It is called in other processes if there are several workers. On a CPU these also grow the graphs, each on one
    core, which keeps all cores busier than operations that are divided among them. Processes at one task (see
    `arflows.core.runtime.processes`) share the batches, and each gets all results.

    Args:
        flow: The flow.
        finish: A function of a module.
        count: Number of molecules.
        context: Wanted properties, if any.
        arguments: Given to each call.
        workers: The processes.
        first: Number of the first molecule.
        batch_size: Molecules in a batch.
        **options: The others of `generate`.
    """
    flow.generate(count, context, first=first, batch_size=batch_size, **options)  # raises before anything is drawn
    stretches = (
        (
            first + at,
            min(batch_size, count - at),
            context[at : at + batch_size] if isinstance(context, Tensor) else context,
        )
        for at in range(0, count, batch_size)
    )
    if workers.count > 1 and flow.device.type == "cpu":
        return workers.map(_grow_and_finish, stretches, flow, options, finish, arguments)

    def here(share: Iterator[Stretch]) -> Iterator[Result]:
        return workers.map_here(finish, (_grow(stretch, flow, options) for stretch in share), *arguments)

    return distributed_imap(stretches, here)


def _grow(stretch: Stretch, flow: Generates, options: Mapping[str, Any]) -> Generated:
    first, count, context = stretch
    (batch,) = flow.generate(count, context, first=first, batch_size=count, **options)
    return batch


def _grow_and_finish(
    stretch: Stretch,
    flow: Generates,
    options: Mapping[str, Any],
    finish: Callable[..., Result],
    arguments: tuple[Any, ...],
) -> Result:
    """The work of a process on one batch."""
    torch.set_num_threads(1)
    return finish(_grow(stretch, flow, options), *arguments)
