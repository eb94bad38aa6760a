"""Autoregressive bijections: every site is mapped with parameters computed from the sites before it."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from arflows.core import inversion
from arflows.core.bijections.base import Bijection, sum_except_batch
from arflows.core.bijections.elementwise import Elementwise
from arflows.core.conditioners.autoregressive import AutoregressiveConditioner
from arflows.core.runtime.transforms import is_transformed


class Autoregressive(Bijection):
    """z_i = f(x_i; θ(x_<i, context)) along the first axis of the event.

    Papamakarios, Pavlakou & Murray, "Masked autoregressive flow", 2017 (arXiv:1705.07057), equations 3–5. Data → latent
    is one pass of the conditioner. Latent → data goes site by site, as the solver in force does it: `Sequential` unless
    ``with use_solver(...)`` names another (`arflows.core.inversion`). Its gradients come from the implicit function
    theorem, exactly and at a cost that does not depend on how the solver got there; they can be taken once, not twice.
    `Inverse` of this bijection is inverse autoregressive flow (Kingma et al. 2016, arXiv:1606.04934).

    Args:
        elementwise: the map f of single elements.
        conditioner: computes θ; its sites are those of the event, in the order of generation.
        order: which site of the event is generated first, second, …; None for the order in which they lie.

    Raises:
        ValueError: if ``order`` is not a permutation of 0, 1, …
    """

    order: Tensor | None
    rank: Tensor | None

    def __init__(
        self,
        elementwise: Elementwise,
        conditioner: AutoregressiveConditioner,
        order: Int[Tensor, " sites"] | None = None,
    ) -> None:
        super().__init__()
        if conditioner.parameter_count != elementwise.parameter_count:
            raise ValueError(
                f"the conditioner gives {conditioner.parameter_count} parameters an element, "
                f"{type(elementwise).__name__} takes {elementwise.parameter_count}"
            )
        if order is not None and not torch.equal(order.sort().values.cpu(), torch.arange(order.numel())):
            raise ValueError(f"order must hold each of 0 … {order.numel() - 1} once, got {order.tolist()}")
        self.elementwise = elementwise
        self.conditioner = conditioner
        self.register_buffer("order", order)
        self.register_buffer("rank", None if order is None else order.argsort())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent, in one pass of the conditioner."""
        z, log_derivative = self.transform(_arranged(x, self.order), context)
        return _arranged(z, self.rank), sum_except_batch(log_derivative)

    def transform(
        self, x: Float[Tensor, "batch sites *site"], context: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch sites *site"], Float[Tensor, "batch sites *site"]]:
        """Data → latent with sites in the order of generation; the log-derivative element by element."""
        return self.elementwise(x, self.parameters_given(x, context))

    def parameters_given(self, x: Tensor, context: Tensor | None) -> Float[Tensor, "batch sites *site parameters"]:
        """θ for sites in the order of generation; in the state's precision, also if the network ran in another."""
        return self.conditioner(x, context).to(x.dtype)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data, by the solver in force.

        Raises:
            InversionError: if no finite solution is found, or the solver does not converge and may not fall back.
        """
        z = _arranged(z, self.order)
        if torch.compiler.is_compiling() or is_transformed():
            x, log_det = self._unrolled_inverse(z, context)
        elif torch.is_grad_enabled() and _needs_gradient(self, z, context):
            x, log_det = self._differentiable_inverse(z, context)
        else:
            x, log_det = inversion.invert(self, z, context)
        return _arranged(x, self.rank), log_det

    def _differentiable_inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            solution, _ = inversion.invert(self, z, context)
        with torch.enable_grad():
            leaf = solution.detach().requires_grad_()
            mapped, log_derivative = self.transform(leaf, context)
            # Zero up to rounding, but it carries the gradients of z and of all that the map depends on.
            residual = z - mapped
            x = _ImplicitSolution.apply(residual, solution, mapped, leaf, log_derivative.detach().exp())
            _, log_derivative = self.transform(x, context)
        return x, -sum_except_batch(log_derivative)

    def _unrolled_inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The plain loop, a pass for each site: what a compiler can trace and differentiate as one graph."""
        x = torch.zeros_like(z)
        for _ in range(z.shape[1]):
            x, log_derivative = self.elementwise.inverse(z, self.parameters_given(x, context))
        return x, sum_except_batch(log_derivative)


class _ImplicitSolution(torch.autograd.Function):
    """x with f(x) = z, as a function of the residual z − f(x): ∂x/∂residual = J⁻¹ with J = ∂f/∂x.

    J is triangular. Backward solves Jᵀ v = g by fixed-point sweeps over its strictly triangular part, which is
    nilpotent: they end, exactly, after at most as many as there are sites, and mostly after a few.
    """

    @staticmethod
    def forward(ctx: Any, residual: Tensor, solution: Tensor, mapped: Tensor, leaf: Tensor, diagonal: Tensor) -> Tensor:
        ctx.mapped, ctx.leaf, ctx.diagonal = mapped, leaf, diagonal
        return solution.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        precision = torch.finfo(gradient.dtype).eps
        solved = gradient / ctx.diagonal
        for _ in range(gradient.shape[1]):
            (product,) = torch.autograd.grad(ctx.mapped, ctx.leaf, solved, retain_graph=True)
            remaining = gradient - product
            solved = solved + remaining / ctx.diagonal
            if (remaining.abs() <= 4 * precision * gradient.abs().amax()).all():
                break
        return solved, None, None, None, None


def _arranged(values: Tensor, order: Tensor | None) -> Tensor:
    return values if order is None else values.index_select(1, order)


def _needs_gradient(bijection: Autoregressive, z: Tensor, context: Tensor | None) -> bool:
    inputs = [z] if context is None else [z, context]
    return any(tensor.requires_grad for tensor in [*inputs, *bijection.parameters()])
