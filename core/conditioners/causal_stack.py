"""Gated dilated causal layers along a sequence, all of whose states are computed at once.

On CPUs both directions are one operation, by hand: of each layer its input and what its gates are computed from are
kept, and what lies between two products is one pass over memory (`causal_stack_loops`). Elsewhere, and for double
backward passes, the same arithmetic is PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from arflows.core.conditioners.causal_stack_loops import gate, gate_backward
from arflows.core.conditioners.wavenet_pass import fits, product_type


class CausalStack(nn.Module):
    """Residual layers over a sequence; a state depends on the inputs up to its own step.

    A layer of dilation d computes from its input h, at step t,

        (a, b) = W⁰ h_{t−d} + W¹ h_t + V c_t + v,    h_t ← h_t + R (2 tanh(a) σ(2b)) + r,

    which is the gated unit of van den Oord et al., "WaveNet", 2016 (arXiv:1609.03499), section 2.3, with kernels of two
    and the gate's scale chosen so that its slope at zero is 1. Before the first step inputs are zero.

    Sequences are time-major, (steps, batch, …), so that a shift in time is a slice.

    Args:
        channels: of a state.
        dilations: of the layers.
        features: size of the condition of a step.
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
        """Steps before its own that a state depends on."""
        return sum(self.dilations)

    def added(self, condition: Float[Tensor, "groups batch features"]) -> Float[Tensor, "layers groups batch gates"]:
        """What the condition of a group of steps adds to the gates of each layer."""
        groups, batch, _ = condition.shape
        flat = condition.flatten(0, 1).expand(len(self.dilations), -1, -1)
        added = torch.baddbmm(self.condition_bias[:, None].to(flat.dtype), flat, self.condition.to(flat.dtype))
        return added.view(len(self.dilations), groups, batch, 2 * self.channels)

    def forward(
        self, entry: Float[Tensor, "steps batch channels"], condition: Float[Tensor, "groups batch features"]
    ) -> Float[Tensor, "steps batch channels"]:
        """Computes the states after the last layer.

        Args:
            entry: inputs of the first layer.
            condition: of groups of consecutive steps, each of steps / groups steps.
        """
        steps, batch, _ = entry.shape
        added, low = self.added(condition), product_type(entry)
        entry = entry.to(torch.promote_types(entry.dtype, torch.float32))  # states are sums of many small terms
        weights = (self.past, self.present, self.residual, self.residual_bias)
        if fits(entry, low):
            return _Stack.apply(self.dilations, low, entry, added, *weights)
        h, repeat = entry.flatten(0, 1), steps // len(condition)
        for layer, dilation in enumerate(self.dilations):
            shift = dilation * batch
            gates = h @ self.present[layer]
            gates = (
                torch.cat([gates[:shift], gates[shift:] + h[:-shift] @ self.past[layer]]) if shift < len(h) else gates
            )
            gates = gates + added[layer].repeat_interleave(repeat, 0).flatten(0, 1)
            signal, open_ = gates.chunk(2, 1)
            h = h + 2 * signal.tanh() * (2 * open_).sigmoid() @ self.residual[layer] + self.residual_bias[layer]
        return h.view_as(entry)


class _Stack(torch.autograd.Function):
    """The layers with the gradients of all they are computed from; products are taken in the type ``low``."""

    @staticmethod
    def forward(
        ctx: Any, dilations: tuple[int, ...], low: torch.dtype, entry: Tensor, added: Tensor, past: Tensor,
        present: Tensor, residual: Tensor, residual_bias: Tensor,
    ) -> Tensor:  # fmt: skip
        steps, batch, channels = entry.shape
        ctx.dilations, ctx.low = dilations, low
        h, kept = entry.reshape(-1, channels), []
        keep = any(ctx.needs_input_grad)
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
        ctx.save_for_backward(added, past, present, residual, *kept)
        return h.view(steps, batch, channels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        added, past, present, residual, *kept = ctx.saved_tensors
        batch, low, channels = added.shape[2], ctx.low, residual.shape[1]
        of_h = gradient.reshape(-1, channels).clone()
        wide = of_h.dtype
        of_added = torch.zeros_like(added, dtype=wide)
        of_past, of_present, of_residual = (torch.zeros_like(part, dtype=wide) for part in (past, present, residual))
        of_bias = torch.empty(len(ctx.dilations), channels, dtype=wide)
        passed, of_gates = torch.empty(len(of_h), channels, dtype=low), torch.empty(len(of_h), 2 * channels, dtype=low)
        with torch.autocast("cpu", enabled=False):
            for layer in reversed(range(len(ctx.dilations))):
                seen, gates, shift = kept[2 * layer], kept[2 * layer + 1], ctx.dilations[layer] * batch
                of_mixed = of_h.to(low)
                torch.sum(of_h, 0, out=of_bias[layer])
                gate_backward(gates, added[layer], of_mixed @ residual[layer].T, passed, of_gates, of_added[layer])
                of_residual[layer] = passed.T @ of_mixed
                of_present[layer] = seen.T @ of_gates
                if low == wide:
                    of_h.addmm_(of_gates, present[layer].T)
                else:
                    of_h += of_gates @ present[layer].T
                if shift < len(of_h):
                    of_past[layer] = seen[:-shift].T @ of_gates[shift:]
                    if low == wide:
                        of_h[:-shift].addmm_(of_gates[shift:], past[layer].T)
                    else:
                        of_h[:-shift] += of_gates[shift:] @ past[layer].T
        of_entry = of_h.view_as(gradient)
        return None, None, of_entry, of_added, of_past, of_present, of_residual, of_bias
