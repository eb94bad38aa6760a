"""Autoregressive bijections: each site is mapped with parameters computed from the sites before it."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from arflows.core import inversion
from arflows.core.bijections.base import Bijection, sum_except_batch
from arflows.core.bijections.elementwise import Elementwise
from arflows.core.conditioners.autoregressive import AutoregressiveConditioner
from arflows.core.runtime.torch_compat import is_transformed


class Autoregressive(Bijection):
    """z_i = f(x_i; θ(x_<i, context)) along the first axis of the event.

    Papamakarios, Pavlakou & Murray, "Masked autoregressive flow", 2017 (arXiv:1705.07057), equations 3–5. Data → latent
    is one pass of the conditioner. Latent → data is site by site, by the active solver: `Sequential` unless ``with
    use_solver(...)`` sets another (`arflows.core.inversion`). First and second derivatives of the inverse are exact, by
    the implicit function theorem, at a cost that does not depend on the solver. In compiled code and in transforms of
    torch.func, the inverse is a loop with a pass of the conditioner for each site. The `Inverse` of this bijection is
    inverse autoregressive flow (Kingma et al. 2016, arXiv:1606.04934).

    Args:
        elementwise: map f of single elements.
        conditioner: network that computes θ; its sites are those of the event, in the order of generation.
        order: site of the event that is generated first, second, …; None for the order of the event.

    Raises:
        ValueError: if ``order`` is not a permutation of 0, 1, …, or the numbers of parameters differ.

    >>> from arflows.core.bijections import Affine
    >>> from arflows.core.conditioners import MaskedMLP
    >>> layer = Autoregressive(Affine(), MaskedMLP(features=3, parameter_count=2, hidden_features=(16,)))
    >>> x = torch.randn(5, 3)
    >>> torch.allclose(layer.inverse(layer(x)[0])[0], x, atol=1e-5)
    True
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
                f"the conditioner computes {conditioner.parameter_count} parameters for each element, "
                f"{type(elementwise).__name__} takes {elementwise.parameter_count}"
            )
        if order is not None and not torch.equal(order.sort().values.cpu(), torch.arange(order.numel())):
            raise ValueError(f"order must hold each of 0 … {order.numel() - 1} once, got {order.tolist()}")
        self.elementwise = elementwise
        self.conditioner = conditioner
        self.register_buffer("order", order)
        self.register_buffer("rank", None if order is None else order.argsort())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent in one pass of the conditioner."""
        z, log_derivative = self.transform(_arranged(x, self.order), context)
        return _arranged(z, self.rank), sum_except_batch(log_derivative)

    def transform(
        self, x: Float[Tensor, "batch sites *site"], context: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch sites *site"], Float[Tensor, "batch sites *site"]]:
        """Map data → latent with sites in the order of generation; return z and the elementwise log-derivative."""
        return self.elementwise(x, self.parameters_given(x, context))

    def parameters_given(self, x: Tensor, context: Tensor | None) -> Float[Tensor, "batch sites *site parameters"]:
        """Return θ for sites in the order of generation, in the dtype of ``x`` also under autocast."""
        return self.conditioner(x, context).to(x.dtype)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data by the active solver.

        Raises:
            InversionError: if no finite solution is found, or none within the solver's tolerance.
        """
        z = _arranged(z, self.order)
        if torch.compiler.is_compiling() or is_transformed():
            x, log_det = self._unrolled_inverse(z, context)
        elif torch.is_grad_enabled() and _needs_gradient(self, z, context):
            x, log_det = self._differentiable_inverse(z, context)
        else:
            x, log_det = inversion.solve(self, z, context)
        return _arranged(x, self.rank), log_det

    def _differentiable_inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        parameters = dict(self.named_parameters())
        x = _ImplicitInverse.apply(self, tuple(parameters), z, context, *parameters.values())
        _, log_derivative = self.transform(x, context)
        return x, -sum_except_batch(log_derivative)

    def _unrolled_inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Invert by a plain loop with a pass for each site, which can be traced and transformed."""
        x = torch.zeros_like(z)
        for _ in range(z.shape[1]):
            x, log_derivative = self.elementwise.inverse(z, self.parameters_given(x, context))
        return x, sum_except_batch(log_derivative)


class _Transform(nn.Module):
    """`Autoregressive.transform` as the forward pass of a module, for `functional_call`."""

    def __init__(self, bijection: Autoregressive) -> None:
        super().__init__()
        self.bijection = bijection

    def forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.bijection.transform(x, context)


class _ImplicitInverse(torch.autograd.Function):
    """x with f(x; θ) = z, as a function of z, the context and the parameters θ.

    By the implicit function theorem ∂x/∂z = J⁻¹ and ∂x/∂θ = −J⁻¹ ∂f/∂θ, with J = ∂f/∂x. The backward pass runs f once
    at x, solves Jᵀ v = g (`_solve_triangular`), and pulls −v back through f. All of this can be differentiated once
    more, with respect to x as well, which gives second derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any,
        bijection: Autoregressive,
        names: tuple[str, ...],
        z: Tensor,
        context: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        x, _ = inversion.solve(bijection, z, context)
        ctx.transform, ctx.names = _Transform(bijection), [f"bijection.{name}" for name in names]
        ctx.device = x.device.type
        ctx.autocast = torch.is_autocast_enabled(ctx.device)
        ctx.autocast_dtype = torch.get_autocast_dtype(ctx.device)
        ctx.save_for_backward(x, context, *parameters)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        twice = torch.is_grad_enabled()

        def alias(tensor: Any, wanted: bool) -> Any:
            """A name for an input of f at which gradients end here, but not those of a second derivative."""
            if tensor is None or not wanted:
                return None if tensor is None else tensor.detach()
            return tensor.view_as(tensor) if twice else tensor.detach().requires_grad_()

        wanted = ctx.needs_input_grad[3:]
        with torch.enable_grad(), torch.autocast(ctx.device, ctx.autocast_dtype, ctx.autocast, cache_enabled=False):
            x, *inputs = ctx.saved_tensors
            at = alias(x, True)
            context, *parameters = inputs = list(map(alias, inputs, wanted))
            mapped, log_derivative = torch.func.functional_call(
                ctx.transform, dict(zip(ctx.names, parameters, strict=True)), (at, context)
            )
        diagonal = log_derivative.detach().exp()
        v = _solve_triangular(
            lambda vector: torch.autograd.grad(mapped, at, vector, retain_graph=True)[0], gradient.detach(), diagonal
        )
        if twice:
            leaf = v.detach().requires_grad_()
            (product,) = torch.autograd.grad(mapped, at, leaf, create_graph=True)
            v = _ImplicitAdjoint.apply(gradient - product, v, product, leaf, diagonal)
        followed = [tensor for tensor, want in zip(inputs, wanted, strict=True) if want]
        found = iter(
            torch.autograd.grad(mapped, followed, -v, create_graph=twice, allow_unused=True) if followed else ()
        )
        return None, None, v, *(next(found) if want else None for want in wanted)


class _ImplicitAdjoint(torch.autograd.Function):
    """v with Jᵀ v = g, as a function of the residual g − Jᵀ v: ∂v/∂residual = J⁻ᵀ."""

    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, solution: Tensor, product: Tensor, leaf: Tensor, diagonal: Tensor
    ) -> Tensor:
        ctx.product, ctx.leaf, ctx.diagonal = product, leaf, diagonal
        return solution.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        def multiply(vector: Tensor) -> Tensor:
            """J times a vector: the gradient of ⟨Jᵀ leaf, vector⟩."""
            return torch.autograd.grad(ctx.product, ctx.leaf, vector, retain_graph=True)[0]

        solution = _solve_triangular(multiply, gradient.detach(), ctx.diagonal)
        if torch.is_grad_enabled():
            solution = _NoThirdDerivative.apply(solution, ctx.product)
        return solution, None, None, None, None


class _NoThirdDerivative(torch.autograd.Function):
    """Identity that raises an error when differentiated, unlike `once_differentiable` also for a constant gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "third derivatives through the inverse of an autoregressive bijection are not implemented: take those of "
            "its forward pass"
        )


def _solve_triangular(
    multiply: Callable[[Tensor], Tensor],
    target: Float[Tensor, "batch sites *site"],
    diagonal: Float[Tensor, "batch sites *site"],
) -> Float[Tensor, "batch sites *site"]:
    """Solve A v = target for the Jacobian of an autoregressive map, or its transpose.

    Fixed-point sweeps over the strictly triangular part, which is nilpotent: they are exact after at most one sweep for
    each site, and usually after a few. They end when every example is solved to the precision of its own target.

    Args:
        multiply: The product of A and a vector.
        target: The right-hand side.
        diagonal: The diagonal of A.
    """
    accepted = 4 * torch.finfo(target.dtype).eps * target.abs().flatten(1).amax(1) if target.numel() else 0.0
    solution = target / diagonal
    for _ in range(target.shape[1]):
        remaining = target - multiply(solution)
        solution = solution + remaining / diagonal
        if (remaining.abs().flatten(1).amax(1) <= accepted).all() if target.numel() else True:
            break
    return solution


def _arranged(values: Tensor, order: Tensor | None) -> Tensor:
    return values if order is None else values.index_select(1, order)


def _needs_gradient(bijection: Autoregressive, z: Tensor, context: Tensor | None) -> bool:
    inputs = [z] if context is None else [z, context]
    return any(tensor.requires_grad for tensor in [*inputs, *bijection.parameters()])
