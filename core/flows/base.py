"""Base class of flows over vectors."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arflows.core.bases import StandardNormal
from arflows.core.bijections import Bijection, Chain, Standardize
from arflows.core.flow import BijectiveFlow, evaluating, require_tensor
from arflows.core.inversion import Solver
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.pretrained import Pretrained
from arflows.core.runtime.torch_compat import is_transformed


class VectorFlow(BijectiveFlow, Pretrained):
    """Flow over vectors with a standard normal base, optionally conditional.

    It standardises examples and context first, with the means and standard deviations set by `initialize`; before that
    call with 0 and 1.

    Args:
        bijection: map from data to latents, both (batch, features).
        features: size of an example.
        context: size of the context that the density is conditioned on; 0 for none.
    """

    def __init__(self, bijection: Bijection, features: int, context: int = 0) -> None:
        super().__init__(
            StandardNormal((features,)),
            Chain(Standardize(features), bijection),
            context_encoder=_StandardizedContext(context) if context else None,
        )
        self.context_features = context

    def log_prob(
        self, x: Float[Tensor, "*batch features"], context: Float[Tensor, "*#batch context"] | None = None
    ) -> Float[Tensor, "*batch"]:
        """Return the log-density of each example in nats.

        Args:
            x: examples, with one batch dimension or several.
            context: context: a row for each example, one row for all, or batch dimensions that broadcast with those of
                ``x``. If both have a single batch dimension, its sizes must agree.

        Raises:
            UserError: if x or context do not fit the flow in shape, type or device, or hold NaN or infinite values.
        """
        self._check("x", x, self.dims)
        context = self._checked(context)
        if context is None:
            return super().log_prob(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        shape = _broadcast(x.shape[:-1], context.shape[:-1])
        x, context = (values.expand(*shape, -1).flatten(0, -2) for values in (x, context))
        return super().log_prob(x, context).unflatten(0, shape)

    @torch.no_grad()
    def sample(
        self,
        count: int | Sequence[int],
        context: Float[Tensor, "*rows context"] | None = None,
        *,
        per_context: bool = False,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
    ) -> Float[Tensor, "*count features"]:
        """Draw examples, in evaluation mode and without gradients.

        Args:
            count: number of examples, or the shape (n, m, …) of an array of examples.
            context: context: a row for each example, or one row for all.
            per_context: draw ``count`` examples for each row of context, with the dimensions of the rows after those of
                ``count``: 7 samples for each of 10 rows have the shape (7, 10, features).
            temperature: factor on the standard deviation of the latents.
            generator: source of randomness; a CPU generator gives the same latents on every device.
            solver: solver for autoregressive parts; None for the active solver, `Sequential` by default.

        Raises:
            UserError: if the context does not fit, or a number is out of range.
            InversionError: if the solver finds no solution.
        """
        options: dict[str, Any] = {
            "per_context": per_context,
            "temperature": temperature,
            "generator": generator,
            "solver": solver,
        }
        return self.rsample_with_log_prob(count, context, **options)[0]

    @torch.no_grad()
    def sample_with_log_prob(
        self,
        count: int | Sequence[int],
        context: Float[Tensor, "*rows context"] | None = None,
        *,
        per_context: bool = False,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
    ) -> tuple[Float[Tensor, "*count features"], Float[Tensor, "*count"]]:
        """Draw examples and return their log-densities at temperature 1; arguments as for `sample`."""
        options: dict[str, Any] = {
            "per_context": per_context,
            "temperature": temperature,
            "generator": generator,
            "solver": solver,
        }
        return self.rsample_with_log_prob(count, context, **options)

    def rsample(
        self, count: int | Sequence[int], context: Float[Tensor, "*rows context"] | None = None, **options: Any
    ) -> Float[Tensor, "*count features"]:
        """Draw examples with gradients of parameters and context; arguments as for `sample`.

        The examples are a deterministic function of parameters, context and noise (the reparametrisation trick).
        """
        return self.rsample_with_log_prob(count, context, **options)[0]

    def rsample_with_log_prob(
        self,
        count: int | Sequence[int],
        context: Float[Tensor, "*rows context"] | None = None,
        *,
        per_context: bool = False,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
    ) -> tuple[Float[Tensor, "*count features"], Float[Tensor, "*count"]]:
        """Draw examples and return their log-densities, both with gradients; arguments as for `sample`."""
        shape = (count,) if isinstance(count, int) else tuple(count)
        if not shape or min(shape) < 1:
            raise UserError(f"the number of samples must be at least 1, got {count}")
        rows = self._checked(context)
        if rows is not None:
            if per_context:
                shape = (*shape, *rows.shape[:-1])
            elif rows.shape[:-1] not in (shape, (1,)) and len(rows.shape) > 1:
                raise UserError(
                    f"expected one row of context for each of {prod(shape)} examples, or one for all, got "
                    f"{tuple(rows.shape[:-1])}: per_context=True draws as many for each row"
                )
            rows = rows.expand(*shape, -1).flatten(0, -2)
        elif per_context:
            raise UserError("per_context has no meaning without context: leave it out")
        with evaluating(self):
            z, encoded = self._latents(prod(shape), rows, temperature, generator)
            x, log_det = self._inverse(z, encoded, solver)
            log_prob = self.base.log_prob(z, encoded) - log_det
        return x.unflatten(0, shape), log_prob.unflatten(0, shape)

    def _checked(self, context: Tensor | None) -> Tensor | None:
        """Return a context of two dimensions or more; raise UserError if it is missing, superfluous or unfit."""
        if not self.context_features:
            if context is not None:
                raise UserError("this flow was built without context: leave it out, or build it with context=…")
            return None
        if context is None:
            raise UserError(f"this flow needs a context of {self.context_features} features for each example")
        require_tensor("context", context)
        context = context[None] if context.ndim == 1 else context
        self._check("context", context, self.context_features)
        return context

    def _check(self, name: str, values: Tensor, features: int) -> None:
        require_tensor(name, values)
        if values.ndim < 2 or values.shape[-1] != features:
            raise UserError(f"{name} must have shape (batch, {features}), got {tuple(values.shape)}")
        if values.dtype != self.dtype or values.device != self.device:
            raise UserError(
                f"{name} is {values.dtype} on {values.device}, the flow {self.dtype} on {self.device}: "
                f"convert one of them, as by {name}.to(…) or flow.to(…)"
            )
        # Reading values makes a GPU wait and can be neither compiled nor transformed; there NaN passes to the result.
        if torch.compiler.is_compiling() or values.is_cuda or is_transformed():
            return
        # The sum is several times faster and finite in almost all valid cases; only numbers near the largest overflow.
        if not values.sum().isfinite() and not values.isfinite().all():
            rows = (~values.flatten(0, -2).isfinite().all(1)).nonzero().flatten()
            raise UserError(f"{name} holds NaN or infinite values in {len(rows)} of its rows, the first {int(rows[0])}")


def _broadcast(examples: torch.Size, rows: torch.Size) -> torch.Size:
    """Broadcast the batch dimensions of examples and context.

    Raises:
        UserError: if they do not broadcast, or one example meets several rows in a single batch dimension.
    """
    if len(examples) == len(rows) == 1 and rows[0] not in (1, examples[0]):
        raise UserError(
            f"expected one row of context for each of {examples[0]} examples, or one for all, got {rows[0]}"
        )
    try:
        return torch.broadcast_shapes(examples, rows)
    except RuntimeError as error:
        raise UserError(
            f"the batch dimensions {tuple(examples)} of x and {tuple(rows)} of context do not broadcast"
        ) from error


class _StandardizedContext(nn.Module):
    """Standardisation of the context."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.standardize = Standardize(features)

    def forward(self, context: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        return self.standardize(context)[0]
