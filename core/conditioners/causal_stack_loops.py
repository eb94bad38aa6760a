"""Elementwise operations of a `CausalStack` on CPUs, each as one compiled pass over memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arflows.core.runtime.numba_loops import compiled
from arflows.core.runtime.numba_math import exp_minus_twice, narrow, wide
from arflows.core.runtime.threads import in_shares

_GROUPS = 8
"""Smallest number of groups of steps for a thread."""


def gate(
    gates: Float[Tensor, "rows 2*channels"],
    added: Float[Tensor, "groups batch 2*channels"],
    out: Float[Tensor, "rows channels"],
) -> None:
    """Write 2 tanh(a) σ(2b) with (a, b) = gates + added; rows are steps times the batch, steps first.

    Args:
        gates: Outputs of the convolution, a and b side by side.
        added: Terms of context and biases; a group is a run of consecutive steps that share them.
        out: Output of the gates; written.
    """
    _in_shares(_gate, gates, added, out)


def gate_backward(
    gates: Float[Tensor, "rows 2*channels"],
    added: Float[Tensor, "groups batch 2*channels"],
    grad_out: Float[Tensor, "rows channels"],
    out: Float[Tensor, "rows channels"],
    grad_gates: Float[Tensor, "rows 2*channels"],
    grad_added: Float[Tensor, "groups batch 2*channels"],
) -> None:
    """Compute the backward pass of `gate`: write its output and the gradient of its gates, add to that of ``added``.

    Args:
        gates: Inputs of `gate`.
        added: Inputs of `gate`.
        grad_out: Gradient of the output of `gate`.
        out: Output of `gate`; recomputed and written.
        grad_gates: Gradient of ``gates``; written.
        grad_added: Gradient of ``added``, float32 or wider; added to.
    """
    _in_shares(_gate_backward, gates, added, grad_out, out, grad_gates, grad_added)


def _in_shares(loop: Any, *tensors: Tensor) -> None:
    one = np.float64(1) if tensors[0].dtype == torch.float64 else np.float32(1)
    arrays = [
        tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
        for tensor in (tensor.detach() for tensor in tensors)
    ]
    in_shares(loop, tensors[1].shape[0], _GROUPS, one, *arrays)


@compiled
def _gate(share: int, start: int, stop: int, one: Any, gates: Any, added: Any, out: Any) -> None:
    channels, batch = np.uintp(out.shape[1]), added.shape[1]
    repeat = len(gates) // (len(added) * batch)
    for group in range(start, stop):
        for step in range(repeat):
            for example in range(batch):
                row = (group * repeat + step) * batch + example
                own, more, into = gates[row], added[group, example], out[row]
                for channel in range(channels):
                    e = exp_minus_twice(wide(own[channel]) + wide(more[channel]))
                    f = exp_minus_twice(wide(own[channels + channel]) + wide(more[channels + channel]))
                    into[channel] = narrow((one + one) * (one - e) / ((one + e) * (one + f)), own[channel])


@compiled
def _gate_backward(
    share: int, start: int, stop: int, one: Any, gates: Any, added: Any, grad_out: Any, out: Any, grad_gates: Any,
    grad_added: Any,
) -> None:  # fmt: skip
    channels, batch = np.uintp(out.shape[1]), added.shape[1]
    repeat = len(gates) // (len(added) * batch)
    for group in range(start, stop):
        for step in range(repeat):
            for example in range(batch):
                row = (group * repeat + step) * batch + example
                own, more, given, again = gates[row], added[group, example], grad_out[row], out[row]
                into, total = grad_gates[row], grad_added[group, example]
                for channel in range(channels):
                    e = exp_minus_twice(wide(own[channel]) + wide(more[channel]))
                    f = exp_minus_twice(wide(own[channels + channel]) + wide(more[channels + channel]))
                    once = one / ((one + e) * (one + f))
                    tanh, twice = (one - e) * (one + f) * once, (one + one) * (one + e) * once
                    again[channel] = narrow(tanh * twice, own[channel])
                    scaled = wide(given[channel]) * twice
                    grad_signal, grad_gate = scaled * (one - tanh * tanh), scaled * tanh * (one + one - twice)
                    into[channel] = narrow(grad_signal, own[channel])
                    into[channels + channel] = narrow(grad_gate, own[channel])
                    total[channel] += grad_signal
                    total[channels + channel] += grad_gate
