"""Solvers of z = f(x) for autoregressive bijections, latent → data.

    with use_solver(Jacobi(tolerance=1e-6)) as reports:
        x = flow.sample(16)
    print(reports[0])

All of them return x with f(x) = z or raise `InversionError`; none returns an approximation in silence.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from threading import Barrier
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from arflows.core.bijections.base import sum_except_batch
from arflows.core.runtime.cuda_graphs import replayed
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.machine import double

if TYPE_CHECKING:
    from arflows.core.bijections.autoregressive import Autoregressive
    from arflows.core.bijections.elementwise import Elementwise
    from arflows.core.conditioners.autoregressive import Stream

POLISHING_SWEEPS = 8


class InversionError(UserError):
    """No solution was found that holds what was asked."""


@dataclass(frozen=True)
class Report:
    """What a solver did on one autoregressive bijection.

    Attributes:
        solver: its name.
        sites: number of sites.
        sweeps: how often parameters were computed anew, over all blocks: a sequential solver takes one sweep a site.
        network_evaluations: work of the conditioner, in passes over all sites.
        residual: largest |f(x) − z| / max(1, |z|) over the batch where the iteration ended; None where it was not
            computed, because x is the solution by construction.
        converged: whether the solver got there by itself.
        fell_back: whether it was `Sequential` that gave the solution.
    """

    solver: str
    sites: int
    sweeps: int
    network_evaluations: float
    residual: float | None
    converged: bool = True
    fell_back: bool = False


Solution = tuple[Float[Tensor, "batch sites *site"], Float[Tensor, " batch"], Report]


class Solver(ABC):
    """A way of inverting an autoregressive bijection.

    Args:
        polish: correct the solution by sweeps of the model in float64, until it is one to the precision of the type it
            is returned in. For models so steep that rounding errors of float32 grow along the sites.
    """

    def __init__(self, polish: bool = False) -> None:
        self.polish = polish

    def solve(
        self, bijection: Autoregressive, z: Float[Tensor, "batch sites *site"], context: Tensor | None = None
    ) -> Solution:
        """Finds x with f(x) = z, sites in the order of generation, without gradients.

        Returns:
            x, log|det ∂x/∂z| of shape (batch,), and a report.

        Raises:
            InversionError: if x is not finite, or the solver did not converge and may not fall back.
        """
        with torch.no_grad():
            x, log_det, report = self._solve(bijection, z, context)
            if self.polish and z.numel():
                x, log_det, report = _polished(bijection, z, context, x, report)
        if not x.isfinite().all():
            cause = "z is not finite" if not z.isfinite().all() else "the model is too steep for its number type"
            raise InversionError(f"the inverse of an autoregressive bijection is not finite: {cause}")
        return x, log_det, report

    @abstractmethod
    def _solve(self, bijection: Autoregressive, z: Tensor, context: Tensor | None) -> Solution:
        """What `solve` does, before polish and checks."""


class Sequential(Solver):
    """Site after site, each once, by the conditioner's stream or its loop: exact by construction.

    On a CUDA device the loop is captured as a graph at its first use and replayed afterwards.
    """

    def _solve(self, bijection: Autoregressive, z: Tensor, context: Tensor | None) -> Solution:
        sites = z.shape[1]
        computed = sites

        def loop(z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
            nonlocal computed
            stream = bijection.conditioner.stream(z, context)
            x, log_derivative = in_sequence(stream, bijection.elementwise, z)
            computed = stream.computed
            return x, sum_except_batch(log_derivative)

        if z.is_cuda:
            x, log_det = replayed(bijection, loop, z, context)
        else:
            x, log_det = _in_parts(loop, z, context, bijection.conditioner.examples_at_once(z))
        return x, log_det, Report("Sequential", sites, sites, computed / sites, None)


def _in_parts(
    loop: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]], z: Tensor, context: Tensor | None, size: int
) -> tuple[Tensor, Tensor]:
    """Runs a loop on a CPU over parts of a batch of at most that size, which share the threads that PyTorch takes."""
    threads, count = torch.get_num_threads(), max(1, -(-len(z) // size))
    if count > 1:  # as much for each thread
        count += -count % min(threads, count)
    parts = z.tensor_split(count)
    contexts: list[Tensor | None] = [context] * count
    if context is not None and count > 1:
        contexts = list(context.expand(len(z), *context.shape[1:]).tensor_split(count))

    def run(part: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():  # without the book-keeping of autograd, a good part of what a small step costs
            return loop(part, own)

    workers = min(threads, count)
    if workers == 1:
        solved = list(map(run, parts, contexts))
    else:
        ready = Barrier(workers + 1)

        def begin() -> None:
            torch.set_num_threads(threads // workers)
            torch.get_num_threads()  # the first time it is what was set last, by whichever thread
            ready.wait(timeout=60)

        with ThreadPoolExecutor(workers, initializer=begin) as pool:
            running = [pool.submit(run, *each) for each in zip(parts, contexts, strict=True)]
            ready.wait(timeout=60)
            torch.set_num_threads(threads)  # for threads that others begin
            solved = [each.result() for each in running]
    x, log_det = (torch.cat(each) for each in zip(*solved, strict=True))  # of no mode, usable in autograd
    return x, log_det


def in_sequence(
    stream: Stream, elementwise: Elementwise, z: Float[Tensor, "batch sites *site"]
) -> tuple[Float[Tensor, "batch sites *site"], Float[Tensor, "batch sites *site"]]:
    """Latent → data, by the stream's own loop or a step for each site, with the log-derivative element by element."""
    if (solved := stream.invert(elementwise, z)) is not None:
        return solved
    x: Tensor | None = None
    values, log_derivatives = [], []
    for z_site in z.movedim(1, 0).contiguous().unbind(0):
        x, log_derivative = elementwise.inverse(z_site, stream.step(x).to(z.dtype))
        values.append(x)
        log_derivatives.append(log_derivative)
    return torch.stack(values, 1), torch.stack(log_derivatives, 1)


class _FixedPoint(Solver):
    """Sweeps over sites, all of them at once with the parameters that the last guess gives, until they agree.

    Raises:
        ValueError: for settings below 1, or a tolerance that is not positive.
    """

    def __init__(
        self, tolerance: float = 1e-5, max_sweeps: int | None = None, fallback: bool = True, polish: bool = False
    ) -> None:
        super().__init__(polish)
        if max_sweeps is not None and max_sweeps < 1:
            raise ValueError(f"max_sweeps={max_sweeps} must be at least 1")
        if not tolerance > 0:
            raise ValueError(f"tolerance={tolerance} must be greater than 0")
        self.tolerance = tolerance
        self.max_sweeps = max_sweeps
        self.fallback = fallback

    def _iterate(
        self, bijection: Autoregressive, z: Tensor, parameters_given: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, int, float]:
        """Sweeps until the tolerance holds or the solution is exact: x, its log-derivatives, sweeps, residual."""
        sites = z.shape[1]
        limit = sites if self.max_sweeps is None else min(self.max_sweeps, sites)
        guess, log_derivative, residual = z, torch.zeros_like(z), float("inf")
        for sweep in range(1, limit + 1):
            parameters = parameters_given(guess)
            mapped, log_derivative = bijection.elementwise(guess, parameters)
            residual = relative_residual(mapped, z)
            if residual <= self.tolerance:
                return guess, -log_derivative, sweep, residual
            guess, log_derivative = bijection.elementwise.inverse(z, parameters)
            if sweep < sites:
                # Far from the solution guesses may overflow. The first sites are exact already, so it does not matter
                # what stands in for the later ones as long as it is finite.
                guess = torch.where(guess.isfinite(), guess, 0.0)
        return guess, log_derivative, limit, residual if limit < sites else 0.0

    def _not_converged(self, bijection: Autoregressive, z: Tensor, context: Tensor | None, report: Report) -> Solution:
        if not self.fallback:
            raise InversionError(
                f"{report.solver} did not converge: residual {report.residual:.1e} after {report.sweeps} sweeps, more "
                f"than tolerance={self.tolerance:g}; raise max_sweeps or tolerance, or allow fallback"
            )
        x, log_det, sequential = Sequential()._solve(bijection, z, context)
        work = report.network_evaluations + sequential.network_evaluations
        sweeps = report.sweeps + sequential.sweeps
        return (
            x,
            log_det,
            replace(report, sweeps=sweeps, network_evaluations=work, residual=None, converged=False, fell_back=True),
        )


class Jacobi(_FixedPoint):
    """All sites at once, pass after pass of the network until they agree; exact after as many as there are sites.

    Song, Meng, Liao & Ermon, "Accelerating feedforward computation via parallel nonlinear equation solving", 2021
    (arXiv:2002.03629), algorithm 1. Few passes suffice where sites depend weakly on each other.

    Args:
        tolerance: largest |f(x) − z| / max(1, |z|) to accept; checked of the x that is returned.
        max_sweeps: passes at most; None for as many as there are sites, after which x is exact whatever the tolerance.
        fallback: solve by `Sequential` where ``max_sweeps`` do not suffice; without it that is an error.
        polish: see `Solver`.
    """

    def _solve(self, bijection: Autoregressive, z: Tensor, context: Tensor | None) -> Solution:
        x, log_derivative, sweeps, residual = self._iterate(
            bijection, z, lambda guess: bijection.parameters_given(guess, context)
        )
        report = Report("Jacobi", z.shape[1], sweeps, sweeps, residual)
        if residual > self.tolerance:
            return self._not_converged(bijection, z, context, report)
        return x, sum_except_batch(log_derivative), report


class GaussSeidelJacobi(_FixedPoint):
    """Blocks of sites in turn, each by Jacobi sweeps; what earlier blocks contribute the conditioner's stream keeps.

    Song et al. 2021 (arXiv:2002.03629), algorithm 3; for transformer flows Liu & Qin 2025 (arXiv:2505.12849). A block
    of n sites is exact after n sweeps at the latest.

    Args:
        block: sites in a block.
        tolerance, max_sweeps, fallback, polish: see `Jacobi`; ``max_sweeps`` counts for each block.
    """

    def __init__(
        self,
        block: int = 16,
        tolerance: float = 1e-5,
        max_sweeps: int | None = None,
        fallback: bool = True,
        polish: bool = False,
    ) -> None:
        super().__init__(tolerance, max_sweeps, fallback, polish)
        if block < 1:
            raise ValueError(f"block={block} must be at least 1")
        self.block = block

    def _solve(self, bijection: Autoregressive, z: Tensor, context: Tensor | None) -> Solution:
        stream = bijection.conditioner.stream(z, context)
        blocks: list[Tensor] = []
        log_derivatives: list[Tensor] = []
        sweeps, residual = 0, 0.0
        for z_block in z.split(self.block, 1):
            if blocks:
                stream.commit(blocks[-1])
            x, log_derivative, taken, left = self._iterate(
                bijection, z_block, lambda guess: stream.sweep(guess).to(z.dtype)
            )
            blocks.append(x)
            log_derivatives.append(log_derivative)
            sweeps, residual = sweeps + taken, max(residual, left)
            if residual > self.tolerance:
                break
        report = Report("GaussSeidelJacobi", z.shape[1], sweeps, stream.computed / z.shape[1], residual)
        if residual > self.tolerance:
            return self._not_converged(bijection, z, context, report)
        return torch.cat(blocks, 1), sum_except_batch(torch.cat(log_derivatives, 1)), report


SolverName: TypeAlias = Literal["sequential", "jacobi", "gauss-seidel-jacobi"]
"""What an option of a command takes."""

SOLVERS: dict[SolverName, type[Solver]] = {
    "sequential": Sequential,
    "jacobi": Jacobi,
    "gauss-seidel-jacobi": GaussSeidelJacobi,
}


_in_force: ContextVar[tuple[Solver, list[Report]] | None] = ContextVar("solver", default=None)


@contextmanager
def use_solver(solver: Solver) -> Iterator[list[Report]]:
    """Makes ``solver`` invert every autoregressive bijection in the block; yields the list that reports go into."""
    reports: list[Report] = []
    token = _in_force.set((solver, reports))
    try:
        yield reports
    finally:
        _in_force.reset(token)


def invert(
    bijection: Autoregressive, z: Float[Tensor, "batch sites *site"], context: Tensor | None
) -> tuple[Float[Tensor, "batch sites *site"], Float[Tensor, " batch"]]:
    """Solves by the solver in force, which is `Sequential` where no other is, and files its report."""
    solver, reports = _in_force.get() or (Sequential(), [])
    x, log_det, report = solver.solve(bijection, z, context)
    reports.append(report)
    return x, log_det


def relative_residual(mapped: Tensor, z: Tensor) -> float:
    """Largest |mapped − z| / max(1, |z|); infinite where it is not a number, 0 of nothing."""
    if not z.numel():
        return 0.0
    residual = ((mapped - z).abs() / z.abs().clamp_min(1)).amax()
    return float(residual.nan_to_num(nan=float("inf")))


def _polished(bijection: Autoregressive, z: Tensor, context: Tensor | None, x: Tensor, report: Report) -> Solution:
    """Newton-like sweeps from x with the model in float64, until they change nothing in the precision of z."""
    target, refined = double(z), double(x)
    wide = copy.deepcopy(bijection).to(target.device).double()
    if context is not None:
        context = double(context) if context.is_floating_point() else context.to(target.device)
    sweeps, residual = 0, float("inf")
    while residual > 1e-12 and sweeps < POLISHING_SWEEPS:
        parameters = wide.parameters_given(refined, context)
        residual = relative_residual(wide.elementwise(refined, parameters)[0], target)
        refined, log_derivative = wide.elementwise.inverse(target, parameters)
        sweeps += 1
    refined_report = replace(
        report,
        sweeps=report.sweeps + sweeps,
        network_evaluations=report.network_evaluations + sweeps,
        residual=residual,
    )
    return refined.to(z), sum_except_batch(log_derivative).to(z), refined_report
