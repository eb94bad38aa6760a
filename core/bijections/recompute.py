"""Activations that are computed anew in the backward pass instead of being kept.

Of bijections in a row whose inverse is as cheap as they are, only what the last one returns is kept: in the backward
pass each one's input is had back by its inverse, and its activations exist while its own gradient is computed. Memory
then does not grow with the number of bijections (Gomez, Ren, Urtasun & Grosse, "The reversible residual network", 2017,
arXiv:1707.04585, section 3; for flows Dinh, Krueger & Bengio 2015, arXiv:1410.8516). Of other bijections with networks
the input is kept and the forward pass done again (Chen, Xu, Zhang & Guestrin 2016, arXiv:1604.06174).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from arflows.core.bijections.base import Bijection

Way = Literal["inverse", "again", "kept"]


def recompute(module: nn.Module, on: bool = True) -> None:
    """Says whether the chains in a flow compute activations anew; the gradients are the same, up to rounding.

    Args:
        module: A flow, or a bijection.
        on: False to keep activations, as is usual.
    """
    from arflows.core.bijections.base import Chain

    for part in module.modules():
        if isinstance(part, Chain):
            part.recompute = on


@torch.compiler.disable
def forward_recomputing(
    bijections: Sequence[Bijection], x: Tensor, context: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Data → latent through bijections in a row, such that little is kept for the backward pass.

    Args:
        bijections: The first one is the nearest to the data.
        x: (batch, *event).
        context: What they are conditioned on.

    Returns:
        The latent, and log-determinants that add up to that of all.
    """
    log_dets = []
    for way, group in groupby(bijections, _way):
        parts = list(group)
        if way == "inverse" and x.is_floating_point():
            parameters = dict.fromkeys(parameter for part in parts for parameter in part.parameters())  # each once
            x, log_det = _ByInverse.apply(parts, x, context, *parameters)
            log_dets.append(log_det)
            continue
        for part in parts:
            if way == "again":
                x, log_det = checkpoint(part, x, context, use_reentrant=False)
            else:
                x, log_det = part(x, context)
            log_dets.append(log_det)
    return x, log_dets


def _way(bijection: Bijection) -> Way:
    """How the activations of a bijection are had back.

    A module that changes its state in the forward pass, as batch normalisation does, must not pass forward twice.
    """
    modules = list(bijection.modules())
    training = bijection.training
    if training and any(
        getattr(m, "tracks_batches", False) or isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules
    ):
        return "kept"
    if bijection.reversible and not (training and any(isinstance(m, nn.Dropout) and m.p > 0 for m in modules)):
        return "inverse"
    return "again" if hasattr(bijection, "conditioner") else "kept"


class _ByInverse(torch.autograd.Function):
    """Chain of bijections that keeps only its output and recovers inputs by inverses in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, parts: list[Bijection], x: Tensor, context: Tensor | None, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        log_det: Tensor | float = 0.0
        for part in parts:
            x, more = part(x, context)
            log_det = log_det + more
        assert isinstance(log_det, Tensor)
        ctx.parts, ctx.parameters = parts, parameters
        ctx.save_for_backward(x, context)
        ctx.device = x.device.type
        ctx.autocast = torch.is_autocast_enabled(ctx.device)
        ctx.autocast_dtype = torch.get_autocast_dtype(ctx.device)
        return x, log_det

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(ctx.device, ctx.autocast_dtype, ctx.autocast, cache_enabled=False):
            if torch.is_grad_enabled():
                return None, *_differentiable_gradients(ctx.parts, *ctx.saved_tensors, gradients, ctx.parameters)
            return None, *_gradients(ctx.parts, *ctx.saved_tensors, gradients, ctx.parameters, ctx.needs_input_grad[2])


def _gradients(
    parts: Sequence[Bijection],
    z: Tensor,
    context: Tensor | None,
    gradients: tuple[Tensor, ...],
    parameters: tuple[Tensor, ...],
    wants_context: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of the input, the context and the parameters, one bijection at a time."""
    gradient, grad_log_det = gradients
    found: dict[Tensor, Tensor] = {}
    grad_context = None
    for part in reversed(parts):
        with torch.no_grad():
            x, _ = part.inverse(z, context)
        z, gradient, more = _step_back(part, x, context, gradient, grad_log_det, wants_context)
        own = more.pop(None, None)
        if own is not None:
            grad_context = own if grad_context is None else grad_context + own
        for parameter, value in more.items():
            found[parameter] = found[parameter] + value if parameter in found else value
    return gradient, grad_context, *(found.get(parameter) for parameter in parameters)


def _differentiable_gradients(
    parts: Sequence[Bijection],
    z: Tensor,
    context: Tensor | None,
    gradients: tuple[Tensor, ...],
    parameters: tuple[Tensor, ...],
) -> tuple[Tensor | None, ...]:
    """`_gradients` as a differentiable function of all its arguments; keeps the activations of all bijections."""
    from arflows.core.bijections.base import Chain

    chain = Chain(*parts)
    names = {parameter: name for name, parameter in chain.named_parameters()}
    given = () if context is None else (context,)

    def forward(x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        values = zip((names[parameter] for parameter in parameters), others[len(given) :], strict=True)
        return functional_call(chain, dict(values), (x, *others[: len(given)]))

    x, _ = chain.inverse(z, context)
    _, vjp = torch.func.vjp(forward, x, *given, *parameters)
    grad_x, *others = vjp(gradients)
    return grad_x, *(others if given else [None, *others])


def _step_back(
    part: Bijection, x: Tensor, context: Tensor | None, gradient: Tensor, grad_log_det: Tensor, wants_context: bool
) -> tuple[Tensor, Tensor, dict[Any, Tensor]]:
    """The input of one bijection, the gradient with respect to it, and those of its parameters; None is the context."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        given = None if context is None else context.detach().requires_grad_(wants_context)
        outputs = part(x, given)
        wanted: dict[Any, Tensor] = {p: p for p in part.parameters() if p.requires_grad}
        if given is not None and wants_context:
            wanted = {None: given, **wanted}
        followed = [(o, g) for o, g in zip(outputs, (gradient, grad_log_det), strict=True) if o.requires_grad]
        results = torch.autograd.grad(
            [o for o, _ in followed], [x, *wanted.values()], [g.to(o.dtype) for o, g in followed], allow_unused=True
        )
    more = {key: value for key, value in zip(wanted, results[1:], strict=True) if value is not None}
    return x.detach(), results[0], more
