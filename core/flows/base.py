"""What flows over vectors share."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arflows.core.bases import StandardNormal
from arflows.core.bijections import Bijection, Chain, Standardize
from arflows.core.flow import BijectiveFlow
from arflows.core.inversion import Solver
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.pretrained import Pretrained
from arflows.core.runtime.transforms import is_transformed


class VectorFlow(BijectiveFlow, Pretrained):
    """A flow over vectors with a standard normal base, optionally conditional.

    It begins by standardising examples and context, as `initialize` has set it; without that call, by nothing.

    Args:
        bijection: from data to latents, both (batch, features).
        features: size of an example.
        context: size of what the density is conditioned on; 0 for nothing.
    """

    def __init__(self, bijection: Bijection, features: int, context: int = 0) -> None:
        super().__init__(
            StandardNormal((features,)),
            Chain(Standardize(features), bijection),
            context_encoder=_StandardizedContext(context) if context else None,
        )
        self.context_features = context

    def log_prob(
        self, x: Float[Tensor, "batch features"], context: Float[Tensor, "#batch context"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Log-density in nats.

        Args:
            x: examples.
            context: what they are conditioned on, a row for each, or one row for all.

        Raises:
            UserError: if x or context do not fit the flow in shape, type or device, or hold NaN or infinite values.
        """
        self._check("x", x, self.dims)
        return super().log_prob(x, self._rows(context, len(x)))

    def sample(
        self,
        count: int,
        context: Float[Tensor, "#count context"] | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
    ) -> Float[Tensor, "count features"]:
        """Draws examples; see `BijectiveFlow.sample`. One row of context serves for all of them."""
        context = self._rows(context, count)
        return super().sample(count, context, temperature=temperature, generator=generator, solver=solver)

    def sample_with_log_prob(
        self,
        count: int,
        context: Float[Tensor, "#count context"] | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
    ) -> tuple[Float[Tensor, "count features"], Float[Tensor, " count"]]:
        """Draws examples with their log-densities; see `BijectiveFlow.sample_with_log_prob`."""
        context = self._rows(context, count)
        return super().sample_with_log_prob(count, context, temperature=temperature, generator=generator, solver=solver)

    def _rows(self, context: Tensor | None, count: int) -> Tensor | None:
        """One row of context for each example."""
        if not self.context_features:
            if context is not None:
                raise UserError("this flow was built without context: leave it out, or build it with context=…")
            return None
        if context is None:
            raise UserError(f"this flow needs a context of {self.context_features} features for each example")
        context = context.expand(count, -1) if len(context) == 1 or context.ndim == 1 else context
        self._check("context", context, self.context_features)
        if len(context) != count:
            raise UserError(
                f"expected one row of context for each of {count} examples, or one for all, got {len(context)}"
            )
        return context

    def _check(self, name: str, values: Tensor, features: int) -> None:
        if values.ndim != 2 or values.shape[1] != features:
            raise UserError(f"{name} must have shape (batch, {features}), got {tuple(values.shape)}")
        if values.dtype != self.dtype or values.device != self.device:
            raise UserError(
                f"{name} is {values.dtype} on {values.device}, the flow {self.dtype} on {self.device}: "
                f"convert one of them, as by {name}.to(…) or flow.to(…)"
            )
        # Reading values makes a GPU wait and can be neither compiled nor transformed; there NaN passes to the result.
        if torch.compiler.is_compiling() or values.is_cuda or is_transformed():
            return
        # A sum is several times faster, and finite where all is well but for numbers near the largest there are.
        if not values.sum().isfinite() and not values.isfinite().all():
            rows = (~values.isfinite().all(1)).nonzero().flatten()
            raise UserError(f"{name} holds NaN or infinite values in {len(rows)} of its rows, the first {int(rows[0])}")


class _StandardizedContext(nn.Module):
    """What a flow is conditioned on, as its networks see it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.standardize = Standardize(features)

    def forward(self, context: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        return self.standardize(context)[0]
