"""Parallel pass of a `WaveNet` on CPUs with hand-written forward and backward.

As separate operations, compiled or not, the elementwise work around the convolutions takes longer than the convolutions
themselves: bfloat16 convolutions reach more than a teraflop per second and core, memory a hundredth of that in numbers.
So every result is written where it is read next, and all elementwise work between two products is one pass over memory
(`wavenet_loops`). Two tensors of each layer are stored for the backward pass, the input and the output of the
convolution; the output of the gates is recomputed.

To a compiler, each direction is one operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arflows.core.conditioners.wavenet_layer import Folded, Layer
from arflows.core.conditioners.wavenet_loops import PRECISIONS, carried, carried_backward, gated, gated_backward
from arflows.core.runtime.torch_compat import is_transformed

# Arguments of the operations below: entry (batch, rows, columns, 2), added (layers, batch or 1, rows or 1, columns,
# 2 · channels), valid (batch, 1, columns, 1). Weights: the convolution of each layer, weights and biases of the
# residual path of all layers but the last, the skip path of each layer. Five numbers for each layer: dilations down
# and along, rows and columns of zeros put before its input, and columns that the convolution pads itself.
_NUMBERS = 5


def product_type(like: Tensor) -> torch.dtype:
    """Return the dtype of matrix products: autocast's if it is enabled, otherwise the tensor's."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


def fits(like: Tensor, low: torch.dtype) -> bool:
    """True if this pass supports tensors of that device and precision, and no transform of torch.func is active."""
    return like.device.type == "cpu" and low in PRECISIONS and not is_transformed()


def parameters(
    stack: Sequence[Layer],
    folded: Folded,
    entry: Float[Tensor, "batch rows columns 2"],
    added: Float[Tensor, "layers #batch #rows columns 2*channels"],  # noqa: UP037
    valid: Float[Tensor, "batch 1 columns 1"] | None,
) -> Float[Tensor, "batch rows columns 2"]:
    """Return the sum of the layers' contributions to the parameters, in float32 or wider.

    Args:
        stack: the layers.
        folded: weights in the precision of products.
        entry: the row before each, and ones where columns belong to the signal; in that precision.
        added: contribution of the context and the biases to the gates.
        valid: ones where columns belong to the signal; None if all do.
    """
    numbers: list[int] = []
    for layer in stack:
        left, right = layer.margins
        numbers += [*layer.dilation, layer.past, *((left, 0) if left != right else (0, left))]
    residuals, biases = zip(*folded.residuals, strict=True) if folded.residuals else ((), ())
    weights = [*folded.kernels, *residuals, *biases, *folded.skips]
    summed: Tensor = _Pass.apply(numbers, entry, added, valid, folded.input_proj, *weights)
    return summed


def _plain(
    numbers: list[int], valid: Tensor | None, entry: Tensor, added: Tensor, input_proj: Tensor, *weights: Tensor
) -> Tensor:
    """`parameters` in PyTorch's own operations, which can be differentiated any number of times."""
    layers = len(numbers) // _NUMBERS
    kernels, residuals, biases, skips = _parted(list(weights), layers)
    hidden, summed = entry, entry.new_zeros((), dtype=_wide(entry))
    with torch.autocast("cpu", enabled=False):
        for number in range(layers):
            down, along, above, left, supplied = numbers[_NUMBERS * number : _NUMBERS * (number + 1)]
            seen = F.pad(hidden, (0, 0, left, 0, above, 0)).movedim(3, 1)
            convolved = F.conv2d(seen, kernels[number], None, 1, (0, supplied), (down, along)).movedim(1, 3)
            signal, gate = (convolved + added[number]).chunk(2, -1)
            passed = 2 * torch.tanh(signal) * torch.sigmoid(2 * gate)
            summed = summed + (passed @ skips[number]).to(summed.dtype)
            if number < layers - 1:
                hidden = (hidden if number else hidden @ input_proj) + (passed @ residuals[number] + biases[number])
                hidden = hidden if valid is None else hidden * valid
    return summed


class _Pass(torch.autograd.Function):
    """`parameters` with the gradients of its inputs; second derivatives by `_plain`."""

    @staticmethod
    def forward(
        ctx: Any,
        numbers: list[int],
        entry: Tensor,
        added: Tensor,
        valid: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        keep = any(ctx.needs_input_grad)
        summed, kept = _forward(numbers, entry, added, valid, list(weights), keep)
        ctx.numbers, ctx.count = numbers, len(weights)
        ctx.save_for_backward(entry, added, valid, *weights, *kept)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        entry, added, valid, *rest = ctx.saved_tensors
        weights, kept = rest[: ctx.count], rest[ctx.count :]
        gradients: Sequence[Tensor]
        if torch.is_grad_enabled():  # to be differentiated again
            vjp = torch.func.vjp(partial(_plain, ctx.numbers, valid), entry, added, *weights)[1]
            gradients = vjp(gradient)
        else:
            gradients = _backward(gradient, ctx.numbers, entry, added, valid, weights, kept)
        return None, *gradients[:2], None, *gradients[2:]


def _parted(weights: list[Tensor], layers: int) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Split weights into kernels, residual weights, residual biases and skip weights."""
    first, second, third = layers, 2 * layers - 1, 3 * layers - 2
    return weights[:first], weights[first:second], weights[second:third], weights[third:]


@torch.library.custom_op("arflows::wavenet_pass", mutates_args=(), device_types="cpu")
def _forward(
    numbers: list[int], entry: Tensor, added: Tensor, valid: Tensor | None, weights: list[Tensor], keep: bool
) -> tuple[Tensor, list[Tensor]]:
    layers = len(numbers) // _NUMBERS
    input_proj, (kernels, residuals, biases, skips) = weights[0], _parted(weights[1:], layers)
    batch, rows, columns, _ = entry.shape
    channels = kernels[0].shape[0] // 2
    summed = entry.new_zeros(batch * rows * columns, 2, dtype=_wide(entry))
    mask = _mask(entry, valid)
    passed, mixed = (entry.new_empty(batch, rows, columns, channels) for _ in range(2))
    kept = []
    seen = _room(numbers, entry, 2)
    seen[:, numbers[2] :, numbers[3] :] = entry
    with torch.autocast("cpu", enabled=False):
        for number in range(layers):
            down, along, _, _, supplied = numbers[_NUMBERS * number : _NUMBERS * (number + 1)]
            convolved = F.conv2d(seen.movedim(3, 1), kernels[number], None, 1, (0, supplied), (down, along))
            gates = convolved.movedim(1, 3).contiguous()
            gated(gates, added[number], passed)
            flat = passed.flatten(0, 2)
            summed += flat @ skips[number]
            if keep:
                kept += [seen, gates]
            if number == layers - 1:
                break
            torch.mm(flat, residuals[number], out=mixed.view_as(flat))
            following = _room(numbers[_NUMBERS * (number + 1) :], entry, channels)
            hidden = seen if number else (entry.reshape(-1, 2) @ input_proj).view_as(mixed)
            carried(hidden, mixed, biases[number].to(summed.dtype), mask, following)
            seen = following
    return summed.view(batch, rows, columns, 2), kept


@torch.library.custom_op("arflows::wavenet_pass_backward", mutates_args=(), device_types="cpu")
def _backward(
    gradient: Tensor,
    numbers: list[int],
    entry: Tensor,
    added: Tensor,
    valid: Tensor | None,
    weights: list[Tensor],
    kept: list[Tensor],
) -> list[Tensor]:
    """Return the gradients of entry, added and weights."""
    layers = len(numbers) // _NUMBERS
    input_proj, (kernels, residuals, _, skips) = weights[0], _parted(weights[1:], layers)
    batch, rows, columns, _ = entry.shape
    channels, wide = kernels[0].shape[0] // 2, _wide(entry)
    grad_summed, mask = gradient.to(wide).contiguous(), _mask(entry, valid)
    grad_added = torch.zeros_like(added, dtype=wide)
    grad_kernels, grad_residuals, grad_biases, grad_skips = [], [], [], []
    grad_gates = torch.empty_like(kept[1])
    grad_hidden, grad_passed = (entry.new_zeros(batch, rows, columns, channels) for _ in range(2))
    passed = torch.empty_like(grad_passed)
    grad_entry, grad_input_proj = torch.zeros_like(entry), torch.zeros_like(input_proj)
    flat, flat_hidden, flat_entry = passed.flatten(0, 2), grad_hidden.flatten(0, 2), entry.reshape(-1, 2)
    with torch.autocast("cpu", enabled=False):
        for number in reversed(range(layers)):
            down, along, above, left, supplied = numbers[_NUMBERS * number : _NUMBERS * (number + 1)]
            seen, gates = kept[2 * number : 2 * number + 2]
            if number < layers - 1:
                torch.mm(flat_hidden, residuals[number].T, out=grad_passed.view_as(flat))
            grad_skip = gated_backward(
                gates, added[number], grad_passed, grad_summed, skips[number].T.to(wide).contiguous(),
                passed, grad_gates, grad_added[number],
            )  # fmt: skip
            grad_skips.append(grad_skip.T.to(entry.dtype, memory_format=torch.contiguous_format))
            if number < layers - 1:
                grad_residuals.append(flat.T @ flat_hidden)
            if number == 0 and layers > 1:
                torch.addmm(
                    grad_entry.view_as(flat_entry), flat_hidden, input_proj.T, out=grad_entry.view_as(flat_entry)
                )
                grad_input_proj = flat_entry.T @ flat_hidden
            grad_seen, grad_kernel, _ = torch.ops.aten.convolution_backward(
                grad_gates.movedim(3, 1), seen.movedim(3, 1), kernels[number], None, [1, 1], [0, supplied],
                [down, along], False, [0, 0], 1, [True, True, False],
            )  # fmt: skip
            grad_kernels.append(grad_kernel.contiguous())
            grad_seen = grad_seen.movedim(1, 3).contiguous()
            if number:
                grad_biases.append(carried_backward(grad_seen, mask, grad_hidden).to(entry.dtype))
            else:
                grad_entry += grad_seen[:, above:, left:]
    grad_weights = [*grad_kernels[::-1], *grad_residuals[::-1], *grad_biases[::-1], *grad_skips[::-1]]
    return [grad_entry, grad_added.to(added.dtype), grad_input_proj, *grad_weights]


def _room(numbers: list[int], entry: Tensor, width: int) -> Tensor:
    """Allocate the input of a layer's convolution, with zeros at the borders."""
    batch, rows, columns, _ = entry.shape
    above, left = numbers[2], numbers[3]
    seen = entry.new_empty(batch, above + rows, left + columns, width)
    seen[:, :above].zero_()
    seen[:, above:, :left].zero_()
    return seen


def _mask(entry: Tensor, valid: Tensor | None) -> Tensor:
    return entry.new_ones(entry.shape[0], 1, entry.shape[2], 1) if valid is None else valid.contiguous()


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


@_forward.register_fake
def _forward_shapes(
    numbers: list[int], entry: Tensor, added: Tensor, valid: Tensor | None, weights: list[Tensor], keep: bool
) -> tuple[Tensor, list[Tensor]]:
    batch, rows, columns, _ = entry.shape
    kept: list[Tensor] = []
    for number in range(len(numbers) // _NUMBERS if keep else 0):
        above, left = numbers[_NUMBERS * number + 2], numbers[_NUMBERS * number + 3]
        kernel = weights[1 + number]
        kept.append(entry.new_empty(batch, above + rows, left + columns, kernel.shape[1]))
        kept.append(entry.new_empty(batch, rows, columns, kernel.shape[0]))
    return entry.new_empty(batch, rows, columns, 2, dtype=_wide(entry)), kept


@_backward.register_fake
def _backward_shapes(
    gradient: Tensor,
    numbers: list[int],
    entry: Tensor,
    added: Tensor,
    valid: Tensor | None,
    weights: list[Tensor],
    kept: list[Tensor],
) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (entry, added, *weights)]
