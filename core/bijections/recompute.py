"""Recomputation of activations in the backward pass, which saves the memory for storing them.

A row of bijections with cheap inverses stores only its output. The backward pass recovers the input of each by its
inverse and computes its activations while it computes its gradient, so memory does not grow with the number of
bijections (Gomez, Ren, Urtasun & Grosse, "The reversible residual network", 2017, arXiv:1707.04585, section 3; for
flows Dinh, Krueger & Bengio 2015, arXiv:1410.8516). Other bijections with networks store their input and repeat the
forward pass (Chen, Xu, Zhang & Guestrin 2016, arXiv:1604.06174).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from arflows.core.bijections.base import Bijection

Method = Literal["inverse", "checkpoint", "store"]


@torch.compiler.disable
def forward_recomputing(
    bijections: Sequence[Bijection], x: Tensor, context: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Map data → latent through a row of bijections, storing little for the backward pass.

    Args:
        bijections: the bijections, in the order data → latent.
        x: data, (batch, *event).
        context: context of the bijections.

    Returns:
        The latent, and log-determinants whose sum is that of all bijections.
    """
    log_dets = []
    for method, group in groupby(bijections, _method):
        parts = list(group)
        if method == "inverse" and x.is_floating_point():
            parameters = dict.fromkeys(parameter for part in parts for parameter in part.parameters())  # each once
            x, log_det = _ByInverse.apply(parts, x, context, *parameters)
            log_dets.append(log_det)
            continue
        for part in parts:
            if method == "checkpoint":
                x, log_det = checkpoint(part, x, context, use_reentrant=False)
            else:
                x, log_det = part(x, context)
            log_dets.append(log_det)
    return x, log_dets


def _method(bijection: Bijection) -> Method:
    """Return the method by which the activations of a bijection are available in the backward pass.

    The forward pass of a module that changes its state in it, such as batch normalisation, must not be repeated.
    """
    modules = list(bijection.modules())
    training = bijection.training
    if training and any(
        getattr(m, "tracks_batches", False) or isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules
    ):
        return "store"
    if bijection.reversible and not (training and any(isinstance(m, nn.Dropout) and m.p > 0 for m in modules)):
        return "inverse"
    return "checkpoint" if hasattr(bijection, "conditioner") else "store"


class _ByInverse(torch.autograd.Function):
    """Chain of bijections that keeps only its output and recovers inputs by inverses in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, parts: list[Bijection], x: Tensor, context: Tensor | None, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, log_det = _Parts(parts)(x, context)
        ctx.parts, ctx.parameters = parts, parameters
        ctx.save_for_backward(x, context)
        ctx.device = x.device.type
        ctx.autocast = torch.is_autocast_enabled(ctx.device)
        ctx.autocast_dtype = torch.get_autocast_dtype(ctx.device)
        return x, log_det

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        z, context = ctx.saved_tensors
        with torch.autocast(ctx.device, ctx.autocast_dtype, ctx.autocast, cache_enabled=False):
            if torch.is_grad_enabled():
                return None, *_differentiable_gradients(ctx.parts, z, context, gradients, ctx.parameters)
            return None, *_gradients(ctx.parts, z, context, gradients, ctx.parameters, ctx.needs_input_grad[2])


class _Parts(nn.Module):
    """Bijections in a row as one module, for `functional_call`."""

    def __init__(self, parts: Sequence[Bijection]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_dets = []
        for part in self.parts:
            x, log_det = part(x, context)
            log_dets.append(log_det)
        return x, sum(log_dets[1:], log_dets[0])


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
    module = _Parts(parts)
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    given = () if context is None else (context,)

    def forward(x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        values = zip((names[parameter] for parameter in parameters), others[len(given) :], strict=True)
        return functional_call(module, dict(values), (x, *others[: len(given)]))

    x = z
    for part in reversed(parts):
        x, _ = part.inverse(x, context)
    vjp = torch.func.vjp(forward, x, *given, *parameters)[1]
    grad_x, *others = vjp(gradients)
    return grad_x, *(others if given else [None, *others])


def _step_back(
    part: Bijection, x: Tensor, context: Tensor | None, gradient: Tensor, grad_log_det: Tensor, wants_context: bool
) -> tuple[Tensor, Tensor, dict[Any, Tensor]]:
    """Return the input of one bijection and the gradients of it, of its parameters, and of the context (key None)."""
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
