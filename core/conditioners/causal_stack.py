"""Gated dilated causal layers along a sequence, with a parallel pass over all steps.

On CPUs forward and backward are hand-written: the input and the gates of each layer are stored, and the elementwise
work between two products is one pass over memory (`causal_stack_loops`). On other devices, in transforms of torch.func
and for second derivatives the same arithmetic is in PyTorch's operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arflows.core.conditioners.causal_stack_loops import gate, gate_backward
from arflows.core.conditioners.wavenet_pass import fits, product_type


class CausalStack(nn.Module):
    """Residual gated layers over a sequence; each state depends on the inputs up to its own step.

    A layer of dilation d computes from its input h, at step t,

        (a, b) = W⁰ h_{t−d} + W¹ h_t + V c_t + v,    h_t ← h_t + R (2 tanh(a) σ(2b)) + r,

    which is the gated unit of van den Oord et al., "WaveNet", 2016 (arXiv:1609.03499), section 2.3, with kernels of two
    and the gate's scale chosen so that its slope at zero is 1. Before the first step inputs are zero.

    Sequences are time-major, (steps, batch, …), so that a shift in time is a slice.

    Args:
        channels: number of channels of a state.
        dilations: dilations of the layers.
        features: size of the condition of a step.

    >>> stack = CausalStack(channels=4, dilations=[1, 2], features=3)
    >>> stack(torch.randn(10, 2, 4), torch.randn(5, 2, 3)).shape
    torch.Size([10, 2, 4])
    """

    def __init__(self, channels: int, dilations: Sequence[int], features: int) -> None:
        super().__init__()
        self.channels, self.dilations, self.features = channels, tuple(dilations), features
        layers = len(self.dilations)

        def normal(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(*shape))

        self.past = normal(layers, channels, 2 * channels, scale=1 / math.sqrt(2 * channels))
        self.present = normal(layers, channels, 2 * channels, scale=1 / math.sqrt(2 * channels))
        self.condition = normal(layers, features, 2 * channels, scale=1 / math.sqrt(3 * features))
        self.condition_bias = nn.Parameter(torch.zeros(layers, 2 * channels))
        self.residual = normal(layers, channels, channels, scale=1 / math.sqrt(channels * layers))
        self.residual_bias = nn.Parameter(torch.zeros(layers, channels))

    @property
    def reach(self) -> int:
        """Number of earlier steps that a state depends on."""
        return sum(self.dilations)

    def added(self, condition: Float[Tensor, "groups batch features"]) -> Float[Tensor, "layers groups batch gates"]:
        """Return the contribution of conditions of groups of steps to the gates of each layer."""
        groups, batch, _ = condition.shape
        flat = condition.flatten(0, 1).expand(len(self.dilations), -1, -1)
        added = torch.baddbmm(self.condition_bias[:, None].to(flat.dtype), flat, self.condition.to(flat.dtype))
        return added.view(len(self.dilations), groups, batch, 2 * self.channels)

    def forward(
        self, entry: Float[Tensor, "steps batch channels"], condition: Float[Tensor, "groups batch features"]
    ) -> Float[Tensor, "steps batch channels"]:
        """Compute the states after the last layer.

        Args:
            entry: inputs of the first layer.
            condition: conditions of groups of steps / groups consecutive steps.
        """
        added, low = self.added(condition), product_type(entry)
        entry = entry.to(torch.promote_types(entry.dtype, torch.float32))  # states are sums of many small terms
        weights = (self.past, self.present, self.residual, self.residual_bias)
        if fits(entry, low):
            return _Stack.apply(self.dilations, low, entry, added, *weights)
        return _plain(self.dilations, entry, added, *weights)


def _plain(
    dilations: tuple[int, ...],
    entry: Float[Tensor, "steps batch channels"],
    added: Float[Tensor, "layers groups batch gates"],
    past: Float[Tensor, "layers channels gates"],
    present: Float[Tensor, "layers channels gates"],
    residual: Float[Tensor, "layers channels channels"],
    residual_bias: Float[Tensor, "layers channels"],
) -> Float[Tensor, "steps batch channels"]:
    """Compute the layers in PyTorch's operations, which can be differentiated any number of times."""
    steps, batch, _ = entry.shape
    h, repeat = entry.flatten(0, 1), steps // added.shape[1]
    for layer, dilation in enumerate(dilations):
        shift = dilation * batch
        gates = h @ present[layer]
        if shift < len(h):
            gates = torch.cat([gates[:shift], gates[shift:] + h[:-shift] @ past[layer]])
        signal, gate = (gates + added[layer].repeat_interleave(repeat, 0).flatten(0, 1)).chunk(2, 1)
        h = h + 2 * signal.tanh() * (2 * gate).sigmoid() @ residual[layer] + residual_bias[layer]
    return h.view_as(entry)


class _Stack(torch.autograd.Function):
    """`_plain` with the gradients of its inputs; products are in the dtype ``low``."""

    @staticmethod
    def forward(
        ctx: Any, dilations: tuple[int, ...], low: torch.dtype, entry: Tensor, added: Tensor, past: Tensor,
        present: Tensor, residual: Tensor, residual_bias: Tensor,
    ) -> Tensor:  # fmt: skip
        steps, batch, channels = entry.shape
        ctx.dilations, ctx.low = dilations, low
        h, kept = entry.reshape(-1, channels), []
        keep = any(ctx.needs_input_grad)
        inputs = entry, added, past, present, residual, residual_bias
        past, present, residual, added = (part.to(low) for part in (past, present, residual, added))
        passed = torch.empty(len(h), channels, dtype=low)
        with torch.autocast("cpu", enabled=False):
            for layer, dilation in enumerate(dilations):
                shift, seen = dilation * batch, h.to(low)
                gates = seen @ present[layer]
                if shift < len(h):
                    gates[shift:].addmm_(seen[:-shift], past[layer])
                gate(gates, added[layer], passed)
                kept += [seen, gates] if keep else []
                mixed = passed @ residual[layer]
                h = torch.add(h, residual_bias[layer]).add_(mixed)
        ctx.save_for_backward(*inputs, *kept)
        return h.view(steps, batch, channels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, kept = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        if torch.is_grad_enabled():  # for second derivatives
            vjp = torch.func.vjp(partial(_plain, ctx.dilations), *inputs)[1]
            return None, None, *vjp(gradient)
        added, past, present, residual = (part.to(ctx.low) for part in inputs[1:5])
        batch, low, channels = added.shape[2], ctx.low, residual.shape[1]
        grad_h = gradient.reshape(-1, channels).clone()
        wide = grad_h.dtype
        grad_added = torch.zeros_like(added, dtype=wide)
        grad_past, grad_present, grad_residual = (
            torch.zeros_like(part, dtype=wide) for part in (past, present, residual)
        )
        grad_bias = torch.empty(len(ctx.dilations), channels, dtype=wide)
        passed, grad_gates = (
            torch.empty(len(grad_h), channels, dtype=low),
            torch.empty(len(grad_h), 2 * channels, dtype=low),
        )
        with torch.autocast("cpu", enabled=False):
            for layer in reversed(range(len(ctx.dilations))):
                seen, gates, shift = kept[2 * layer], kept[2 * layer + 1], ctx.dilations[layer] * batch
                grad_mixed = grad_h.to(low)
                torch.sum(grad_h, 0, out=grad_bias[layer])
                gate_backward(
                    gates, added[layer], grad_mixed @ residual[layer].T, passed, grad_gates, grad_added[layer]
                )
                grad_residual[layer] = passed.T @ grad_mixed
                grad_present[layer] = seen.T @ grad_gates
                if low == wide:
                    grad_h.addmm_(grad_gates, present[layer].T)
                else:
                    grad_h += grad_gates @ present[layer].T
                if shift < len(grad_h):
                    grad_past[layer] = seen[:-shift].T @ grad_gates[shift:]
                    if low == wide:
                        grad_h[:-shift].addmm_(grad_gates[shift:], past[layer].T)
                    else:
                        grad_h[:-shift] += grad_gates[shift:] @ past[layer].T
        grad_entry = grad_h.view_as(gradient)
        return None, None, grad_entry, grad_added, grad_past, grad_present, grad_residual, grad_bias
