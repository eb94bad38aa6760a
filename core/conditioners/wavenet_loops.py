"""Elementwise operations of a WaveNet on CPUs, forward and backward, each as one compiled pass over memory.

PyTorch's hyperbolic tangent of bfloat16 takes longer than the convolution before it, and each of the half dozen
operations of a gate reads and writes all of memory. Here tanh and sigmoid share a division, sums are in float32, and
gradients of biases and skip weights are summed in the same pass. Tensors are contiguous, on the CPU and of one dtype
unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arflows.core.runtime.numba_loops import compiled
from arflows.core.runtime.numba_math import exp_minus_twice, narrow, wide
from arflows.core.runtime.threads import in_shares

PRECISIONS = (torch.bfloat16, torch.float32, torch.float64)
"""Supported dtypes of the inputs of gates; the arithmetic is in float32 or wider."""
_COLUMNS = 64
"""Smallest number of columns for a thread."""


def gated(
    gates: Float[Tensor, "batch rows columns 2*channels"],
    added: Float[Tensor, "#batch #rows columns 2*channels"],
    out: Float[Tensor, "batch rows columns channels"],
    least: int = _COLUMNS,
) -> None:
    """Write 2 tanh(a) σ(2b) with (a, b) = gates + added, by threads of at least ``least`` columns.

    Args:
        gates: outputs of the convolution, a and b side by side.
        added: terms of context and biases.
        out: output of the gates; written.
        least: smallest number of columns for a thread.
    """
    _in_shares(_gate, gates, added, out, least=least)


def gated_backward(
    gates: Float[Tensor, "batch rows columns 2*channels"],
    added: Float[Tensor, "#batch #rows columns 2*channels"],
    grad_passed: Float[Tensor, "batch rows columns channels"],
    grad_summed: Float[Tensor, "batch rows columns 2"],
    skip: Float[Tensor, "2 channels"],
    passed: Float[Tensor, "batch rows columns channels"],
    grad_gates: Float[Tensor, "batch rows columns 2*channels"],
    grad_added: Float[Tensor, "#batch #rows columns 2*channels"],
) -> Float[Tensor, "2 channels"]:
    """Compute the backward pass of `gated` and of the product of its output with ``skip``.

    Args:
        gates: inputs of `gated`.
        added: inputs of `gated`.
        grad_passed: gradient of the output of `gated` by the residual path.
        grad_summed: gradient of the product with ``skip``; float32 or wider.
        skip: weights of the skip path; float32 or wider.
        passed: output of `gated`; recomputed and written.
        grad_gates: gradient of ``gates``; written.
        grad_added: gradient of ``added``, float32 or wider; added to.

    Returns:
        The gradient of ``skip``, float32 or wider.
    """
    grad_skip = skip.new_zeros(torch.get_num_threads(), *skip.shape)
    _in_shares(_gate_backward, gates, added, grad_passed, grad_summed, skip, passed, grad_gates, grad_added, grad_skip)
    return grad_skip.sum(0)


def carried(
    seen: Float[Tensor, "batch above+rows left+columns channels"],
    mixed: Float[Tensor, "batch rows columns channels"],
    bias: Float[Tensor, " channels"],
    valid: Float[Tensor, "batch 1 columns 1"],
    out: Float[Tensor, "batch above+rows left+columns channels"],
) -> None:
    """Writes (hidden + mixed + bias) · valid, hidden states lying where convolutions see them; the bias is wide.

    Args:
        seen: input of the convolution: the hidden states after margins of ``above`` rows and ``left`` columns.
        mixed: residual path: product of the output of the gates with the weights.
        bias: bias of the residual path; float32 or wider.
        valid: ones where columns belong to the signal.
        out: input of the next convolution, whose margins may differ; written except for its margins.
    """
    _in_shares(_carry, mixed, seen, bias, valid, out)


def carried_backward(
    grad_seen: Float[Tensor, "batch above+rows left+columns channels"],
    valid: Float[Tensor, "batch 1 columns 1"],
    grad_hidden: Float[Tensor, "batch rows columns channels"],
) -> Float[Tensor, " channels"]:
    """Add the gradient of a convolution's input to the gradient of the hidden states, and mask the sum.

    Args:
        grad_seen: gradient of the convolution's input.
        valid: ones where columns belong to the signal.
        grad_hidden: gradient of the hidden states; written.

    Returns:
        The sum over all samples, which is the gradient of the bias of `carried`.
    """
    wide = torch.promote_types(grad_hidden.dtype, torch.float32)
    total = grad_hidden.new_zeros(torch.get_num_threads(), grad_hidden.shape[-1], dtype=wide)
    _in_shares(_carry_backward, grad_hidden, grad_seen, valid, total)
    return total.sum(0)


def _in_shares(loop: Callable[..., None], *tensors: Tensor, least: int = _COLUMNS) -> None:
    """Run a loop over all columns of the first tensor, on the number of threads that PyTorch uses.

    The loop gets the number of its share, its columns, and 1 in the dtype of the arithmetic, because constants of numba
    are float64.
    """
    one = np.float64(1) if tensors[0].dtype == torch.float64 else np.float32(1)
    arrays = [
        tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
        for tensor in tensors
    ]
    in_shares(loop, tensors[0].shape[2], least, one, *arrays)


@compiled
def _gate(share: int, start: int, stop: int, one: Any, gates: Any, added: Any, out: Any) -> None:
    channels = np.uintp(gates.shape[3] // 2)
    each_example, each_row = added.shape[0] > 1, added.shape[1] > 1
    for example in range(gates.shape[0]):
        for row in range(gates.shape[1]):
            for column in range(start, stop):
                into = out[example, row, column]
                own = gates[example, row, column]
                more = added[example if each_example else 0, row if each_row else 0, column]
                for channel in range(channels):
                    signal = wide(own[channel]) + wide(more[channel])
                    gate = wide(own[channels + channel]) + wide(more[channels + channel])
                    e, f = exp_minus_twice(signal), exp_minus_twice(gate)
                    into[channel] = narrow((one + one) * (one - e) / ((one + e) * (one + f)), own[channel])


@compiled
def _gate_backward(
    share: int, start: int, stop: int, one: Any, gates: Any, added: Any, grad_passed: Any, grad_summed: Any, skip: Any,
    passed: Any, grad_gates: Any, grad_added: Any, grad_skip: Any,
) -> None:  # fmt: skip
    channels = np.uintp(gates.shape[3] // 2)
    each_example, each_row = added.shape[0] > 1, added.shape[1] > 1
    first, second, grad_first, grad_second = skip[0], skip[1], grad_skip[share, 0], grad_skip[share, 1]
    for example in range(gates.shape[0]):
        for row in range(gates.shape[1]):
            for column in range(start, stop):
                added_example, added_row = example if each_example else 0, row if each_row else 0
                own, more = gates[example, row, column], added[added_example, added_row, column]
                given, out = grad_passed[example, row, column], passed[example, row, column]
                into, total = grad_gates[example, row, column], grad_added[added_example, added_row, column]
                x, y = grad_summed[example, row, column, 0], grad_summed[example, row, column, 1]
                for channel in range(channels):
                    signal = wide(own[channel]) + wide(more[channel])
                    gate = wide(own[channels + channel]) + wide(more[channels + channel])
                    e, f = exp_minus_twice(signal), exp_minus_twice(gate)
                    once = one / ((one + e) * (one + f))
                    tanh, twice = (one - e) * (one + f) * once, (one + one) * (one + e) * once
                    out[channel] = narrow(tanh * twice, own[channel])
                    grad_first[channel] += x * tanh * twice
                    grad_second[channel] += y * tanh * twice
                    scaled = (wide(given[channel]) + x * first[channel] + y * second[channel]) * twice
                    grad_signal, grad_gate = scaled * (one - tanh * tanh), scaled * tanh * (one + one - twice)
                    into[channel] = narrow(grad_signal, own[channel])
                    into[channels + channel] = narrow(grad_gate, own[channel])
                    total[channel] += grad_signal
                    total[channels + channel] += grad_gate


@compiled
def _carry(share: int, start: int, stop: int, one: Any, mixed: Any, seen: Any, bias: Any, valid: Any, out: Any) -> None:
    examples, rows, columns, channels = mixed.shape
    above, left = seen.shape[1] - rows, seen.shape[2] - columns
    above_out, left_out = out.shape[1] - rows, out.shape[2] - columns
    for example in range(examples):
        for row in range(rows):
            for column in range(start, stop):
                own, more = seen[example, above + row, left + column], mixed[example, row, column]
                into, mask = out[example, above_out + row, left_out + column], wide(valid[example, 0, column, 0])
                for channel in range(np.uintp(channels)):
                    total = wide(own[channel]) + wide(more[channel]) + bias[channel]
                    into[channel] = narrow(total * mask, own[channel])


@compiled
def _carry_backward(
    share: int, start: int, stop: int, one: Any, grad_hidden: Any, grad_seen: Any, valid: Any, total: Any
) -> None:
    examples, rows, columns, channels = grad_hidden.shape
    above, left = grad_seen.shape[1] - rows, grad_seen.shape[2] - columns
    whole = total[share]
    for example in range(examples):
        for row in range(rows):
            for column in range(start, stop):
                into, more = grad_hidden[example, row, column], grad_seen[example, above + row, left + column]
                mask = wide(valid[example, 0, column, 0])
                for channel in range(np.uintp(channels)):
                    value = (wide(into[channel]) + wide(more[channel])) * mask
                    into[channel] = narrow(value, more[channel])
                    whole[channel] += value
