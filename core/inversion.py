"""Solvers of z = f(x) for autoregressive bijections, latent → data.

    with use_solver(Jacobi(tolerance=1e-6)) as reports:
        x = flow.sample(16)
    print(reports[0])

A solver that has a tolerance measures |f(x) − z| of the x it returns, reports it, and raises `InversionError` if it is
too large. `Sequential`, the default, is exact up to rounding, and checks its solution where it is given a tolerance.

Sampling on a CPU passes these functions: `Autoregressive.inverse` (sites into the order of generation) → `solve` (the
active solver) → `Sequential.run` → `Stream.generate` (site by site, or a compiled loop) → the elementwise map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from arflows.core.bijections.base import sum_except_batch
from arflows.core.bijections.elementwise import Elementwise
from arflows.core.conditioners.autoregressive import AutoregressiveConditioner
from arflows.core.runtime.cuda_graphs import replayed
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.threads import map_parts


class InversionError(UserError):
    """No solution was found within the tolerance."""


class AutoregressiveMap(Protocol):
    """The part of `Autoregressive` that solvers use; sites are in the order of generation."""

    @property
    def elementwise(self) -> Elementwise:
        """The map of single elements."""

    @property
    def conditioner(self) -> AutoregressiveConditioner:
        """The network that computes its parameters."""

    def parameters_given(
        self, x: Float[Tensor, "batch sites *site"], context: Tensor | None
    ) -> Float[Tensor, "batch sites *site parameters"]:
        """Compute the parameters of all sites, in the precision of x."""


@dataclass(frozen=True)
class Report:
    """Facts about the inversion of one autoregressive bijection.

    Attributes:
        solver: Name of the solver.
        sites: Number of sites.
        sweeps: Number of times that parameters were computed, over all blocks; a sequential solver takes one sweep for
            each site.
        network_evaluations: Work of the conditioner, in passes over all sites.
        residual: Largest |f(x) − z| / max(1, |z|) of the x that was returned, over the batch; None if it was not
            computed.
        converged: True if the solver itself found the solution.
        fell_back: True if `Sequential` found it instead.
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
    """An algorithm that inverts autoregressive bijections."""

    @abstractmethod
    def run(
        self, bijection: AutoregressiveMap, z: Float[Tensor, "batch sites *site"], context: Tensor | None
    ) -> Solution:
        """Find x with f(x) = z, sites in the order of generation; called without gradients.

        Args:
            bijection: The map f.
            z: Latents.
            context: The context of the bijection.

        Returns:
            x, log|det ∂x/∂z| of shape (batch,), and a report.

        Raises:
            InversionError: If the solution is not within the solver's tolerance.
        """


class Sequential(Solver):
    """Site after site, each once, by the conditioner's stream: exact up to rounding.

    On a CUDA device the loop is captured as a graph at its first use and replayed afterwards.

    Args:
        tolerance: The largest |f(x) − z| / max(1, |z|) to accept, checked by one more pass of the network; ``math.inf``
            to have it reported only, None for no check.

    Raises:
        ValueError: If the tolerance is not positive.
    """

    def __init__(self, tolerance: float | None = None) -> None:
        if tolerance is not None and not tolerance > 0:
            raise ValueError(f"tolerance={tolerance} must be greater than 0")
        self.tolerance = tolerance

    def run(self, bijection: AutoregressiveMap, z: Tensor, context: Tensor | None) -> Solution:
        """Generate the sites one after the other."""
        sites = z.shape[1]
        computed = sites

        def loop(z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
            nonlocal computed
            stream = bijection.conditioner.stream(z, context)
            x, log_derivative = stream.generate(bijection.elementwise, z)
            computed = stream.computed
            return x, sum_except_batch(log_derivative)

        if z.is_cuda:
            assert isinstance(bijection, torch.nn.Module)
            x, log_det = replayed(bijection, loop, z, context)
        else:
            x, log_det = map_parts(loop, z, context, bijection.conditioner.examples_at_once(z))
        report = Report("Sequential", sites, sites, computed / sites, None)
        if self.tolerance is not None:
            mapped, _ = bijection.elementwise(x, bijection.parameters_given(x, context))
            residual = relative_residual(mapped, z)
            work = report.network_evaluations + 1
            report = replace(report, sweeps=sites + 1, network_evaluations=work, residual=residual)
            if residual > self.tolerance and x.isfinite().all():  # `solve` refuses the others
                raise InversionError(
                    f"the inverse of an autoregressive bijection has residual {residual:.1e}, more than tolerance="
                    f"{self.tolerance:g}: the model is too steep for {_name(z.dtype)}; use a wider type, or raise it"
                )
        return x, log_det, report


class _FixedPoint(Solver):
    """Sweeps over sites, all at once with the parameters that the last guess gives, until guesses agree.

    Raises:
        ValueError: for settings below 1, or a tolerance that is not positive.
    """

    def __init__(self, tolerance: float = 1e-5, max_sweeps: int | None = None, fallback: bool = True) -> None:
        if max_sweeps is not None and max_sweeps < 1:
            raise ValueError(f"max_sweeps={max_sweeps} must be at least 1")
        if not tolerance > 0:
            raise ValueError(f"tolerance={tolerance} must be greater than 0")
        self.tolerance = tolerance
        self.max_sweeps = max_sweeps
        self.fallback = fallback

    def _iterate(
        self, bijection: AutoregressiveMap, z: Tensor, parameters_given: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, int, float]:
        """Sweep until the tolerance holds, or sweeps have run out.

        Returns:
            x, its log-derivatives by z, the number of sweeps, and the residual of this x.
        """
        sites = z.shape[1]
        limit = sites if self.max_sweeps is None else min(self.max_sweeps, sites)
        guess, sweep = z, 0
        while True:
            sweep += 1
            parameters = parameters_given(guess)
            mapped, log_derivative = bijection.elementwise(guess, parameters)
            residual = relative_residual(mapped, z)
            # After ``sites`` updates x is exact but for rounding: one more sweep measures by how much.
            if residual <= self.tolerance or sweep > limit:
                return guess, -log_derivative, sweep, residual
            guess, _ = bijection.elementwise.inverse(z, parameters)
            if sweep < sites:
                # Far from the solution guesses may overflow. The first sites are exact already, so any finite numbers
                # may stand in for the later ones.
                guess = torch.where(guess.isfinite(), guess, 0.0)

    def _accepts(self, residual: float, z: Tensor) -> bool:
        """True if the residual is within the tolerance, or so small that it is the rounding of f."""
        return residual <= max(self.tolerance, 16 * torch.finfo(z.dtype).eps)

    def _not_converged(
        self, bijection: AutoregressiveMap, z: Tensor, context: Tensor | None, report: Report
    ) -> Solution:
        if not self.fallback:
            raise InversionError(
                f"{report.solver} did not converge: residual {report.residual:.1e} after {report.sweeps} sweeps, more "
                f"than tolerance={self.tolerance:g}; raise max_sweeps or tolerance, or allow fallback"
            )
        # A tolerance that rounding cannot reach gets the exact algorithm's solution, unless that is off by more.
        accepted = max(self.tolerance, torch.finfo(z.dtype).eps ** 0.5)
        x, log_det, sequential = Sequential(accepted).run(bijection, z, context)
        work = report.network_evaluations + sequential.network_evaluations
        sweeps = report.sweeps + sequential.sweeps
        return (
            x,
            log_det,
            replace(
                report,
                sweeps=sweeps,
                network_evaluations=work,
                residual=sequential.residual,
                converged=False,
                fell_back=True,
            ),
        )


class Jacobi(_FixedPoint):
    """All sites at once, pass after pass of the network until they agree.

    Song, Meng, Liao & Ermon, "Accelerating feedforward computation via parallel nonlinear equation solving", 2021
    (arXiv:2002.03629), algorithm 1. Few passes suffice where sites depend weakly on each other; after as many passes as
    there are sites, x is exact up to rounding.

    Args:
        tolerance: The largest |f(x) − z| / max(1, |z|) to accept, checked of the x that is returned. When sweeps have
            run out, 16 ε of the number type (2e-6 in float32) is accepted too.
        max_sweeps: The largest number of updates of x; None for the number of sites.
        fallback: Solve by `Sequential` if the tolerance is not reached; False to raise. A residual above the tolerance
            is then accepted up to √ε of the number type (3e-4 in float32), as rounding; the report tells it.
    """

    def run(self, bijection: AutoregressiveMap, z: Tensor, context: Tensor | None) -> Solution:
        """Sweep over all sites."""
        x, log_derivative, sweeps, residual = self._iterate(
            bijection, z, lambda guess: bijection.parameters_given(guess, context)
        )
        report = Report("Jacobi", z.shape[1], sweeps, sweeps, residual)
        if not self._accepts(residual, z):
            return self._not_converged(bijection, z, context, report)
        return x, sum_except_batch(log_derivative), report


class GaussSeidelJacobi(_FixedPoint):
    """Blocks of sites in turn, each by Jacobi sweeps; the conditioner's stream keeps the part of earlier blocks.

    Song et al. 2021 (arXiv:2002.03629), algorithm 3; for transformer flows Liu & Qin 2025 (arXiv:2505.12849). A block
    of n sites is exact up to rounding after n sweeps at the latest.

    Args:
        block: Number of sites in a block.
        tolerance, max_sweeps, fallback: See `Jacobi`; ``max_sweeps`` counts for each block.
    """

    def __init__(
        self, block: int = 16, tolerance: float = 1e-5, max_sweeps: int | None = None, fallback: bool = True
    ) -> None:
        super().__init__(tolerance, max_sweeps, fallback)
        if block < 1:
            raise ValueError(f"block={block} must be at least 1")
        self.block = block

    def run(self, bijection: AutoregressiveMap, z: Tensor, context: Tensor | None) -> Solution:
        """Sweep over the sites of one block after the other."""
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
            if not self._accepts(residual, z):
                break
        report = Report("GaussSeidelJacobi", z.shape[1], sweeps, stream.computed / z.shape[1], residual)
        if not self._accepts(residual, z):
            return self._not_converged(bijection, z, context, report)
        return torch.cat(blocks, 1), sum_except_batch(torch.cat(log_derivatives, 1)), report


SolverName: TypeAlias = Literal["sequential", "jacobi", "gauss-seidel-jacobi"]
"""Values of the option ``--solver``."""

SOLVERS: dict[SolverName, type[Solver]] = {
    "sequential": Sequential,
    "jacobi": Jacobi,
    "gauss-seidel-jacobi": GaussSeidelJacobi,
}


_active: ContextVar[tuple[Solver, list[Report]] | None] = ContextVar("solver", default=None)


@contextmanager
def use_solver(solver: Solver) -> Iterator[list[Report]]:
    """Make ``solver`` invert every autoregressive bijection in the block.

    It holds for the current context (`contextvars`), as decimal's contexts do. A thread that is started in the block
    begins with an empty context on Python up to 3.13, and inverts by `Sequential`, unless it runs in a copy::

        threading.Thread(target=contextvars.copy_context().run, args=(flow.sample, 16))

    Yields:
        The list that receives the reports.
    """
    reports: list[Report] = []
    token = _active.set((solver, reports))
    try:
        yield reports
    finally:
        _active.reset(token)


@torch.no_grad()
def solve(
    bijection: AutoregressiveMap, z: Float[Tensor, "batch sites *site"], context: Tensor | None = None
) -> tuple[Float[Tensor, "batch sites *site"], Float[Tensor, " batch"]]:
    """Invert a bijection by the active solver (`Sequential` by default), and record the report.

    Args:
        bijection: The map f.
        z: Latents, sites in the order of generation.
        context: The context of the bijection.

    Returns:
        x with f(x) = z, without gradients, and log|det ∂x/∂z|.

    Raises:
        InversionError: If x is not finite, or not within the solver's tolerance.
    """
    solver, reports = _active.get() or (Sequential(), [])
    x, log_det, report = solver.run(bijection, z, context)
    if not x.isfinite().all():
        cause = "z is not finite" if not z.isfinite().all() else "the model is too steep for its number type"
        raise InversionError(f"the inverse of an autoregressive bijection is not finite: {cause}")
    reports.append(report)
    return x, log_det


def relative_residual(mapped: Tensor, z: Tensor) -> float:
    """Compute the largest |mapped − z| / max(1, |z|); infinite for NaNs, 0 for empty tensors."""
    if not z.numel():
        return 0.0
    residual = ((mapped - z).abs() / z.abs().clamp_min(1)).amax()
    return float(residual.nan_to_num(nan=float("inf")))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
