"""A transformer's blocks for one token of each example, on CPUs: compiled loops between matrix products.

A token is so little work that calls cost more than most of what they compute, and PyTorch's attention is made for many
queries. Here what lies between two products is one call, and attention reads the cache once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arflows.core.compiled import add_products, compiled, compiled_summing, exp_minus_twice, in_shares

NORM_EPSILON = 1e-5
"""That of `torch.nn.LayerNorm`."""
LANES = 16
"""Scores are computed for multiples of so many sites, whatever lies in those to come: the rest of a loop is slow."""
LOOKED_UP = 10_000
"""Keys that a thread looks up at least: some 0.1 ms of work, a few times what it takes to start one."""


class TokenBlocks:
    """The blocks of a transformer as one token of each example goes through them.

    Keys lie channel by channel, so that the scores of many sites are computed together.

    Args:
        blocks: For each block what `_Block.matrices` says, and its keys and values, (batch, heads, sites, head).
            Values are written there; keys when `restore` is called.
        keys: Memory to keep them in till then; places are a multiple of `LANES`.
    """

    def __init__(
        self, blocks: Sequence[tuple[Tensor, ...]], keys: Float[Tensor, "layers batch heads head places"]
    ) -> None:
        _, batch, heads, head, _ = keys.shape
        width, inner = heads * head, blocks[0][6].shape[1]
        self.normed, self.joint, self.seen, self.inner = (
            keys.new_empty(batch, size) for size in (width, 3 * width, width, inner)
        )
        self.arrays = tuple(tensor.numpy() for tensor in (self.normed, self.joint, self.seen, self.inner))
        self.gelu = _gelu_in_float64 if keys.dtype == torch.float64 else _gelu_in_float32
        self.keys = keys
        self.blocks = []
        for (scale, bias, project, merge, scale_inner, bias_inner, expand, contract, _, values), own in zip(
            blocks, keys, strict=True
        ):
            norms = ((scale.numpy(), bias.numpy()), (scale_inner.numpy(), bias_inner.numpy()))
            # A product with a few rows is faster with a matrix that lies as it is used.
            matrices = tuple(matrix.contiguous() for matrix in (project, merge, expand, contract))
            self.blocks.append((norms, matrices, (own.numpy(), values.numpy())))

    def restore(self, keys: Float[Tensor, "layers batch heads sites head"]) -> None:
        """Writes the keys of the first sites where others look for them."""
        keys.copy_(self.keys[..., : keys.shape[3]].transpose(-1, -2))

    def __call__(self, hidden: Float[Tensor, "batch width"], position: int) -> None:
        """Takes the token at a position through all blocks, in place, and writes its keys and values."""
        normed, joint, seen, inner = self.arrays
        given = hidden.numpy()
        least = 1 + LOOKED_UP // (self.keys.shape[2] * (position + 1))
        for (outer_norm, inner_norm), (project, merge, expand, contract), (keys, values) in self.blocks:
            _normalise(given, *outer_norm, normed)
            torch.mm(self.normed, project, out=self.joint)
            in_shares(_attend, len(joint), least, joint, keys, values, position, seen)
            hidden.addmm_(self.seen, merge)
            _normalise(given, *inner_norm, normed)
            torch.mm(self.normed, expand, out=self.inner)
            self.gelu(inner)
            hidden.addmm_(self.inner, contract)


@compiled_summing
def _normalise(given: Any, scale: Any, bias: Any, out: Any) -> None:
    batch, width = given.shape
    one = given.dtype.type(1)
    for example in range(batch):
        row, into = given[example], out[example]
        total, squares = one - one, one - one
        for channel in range(np.uintp(width)):
            total += row[channel]
        mean = total / given.dtype.type(width)
        for channel in range(np.uintp(width)):
            squares += (row[channel] - mean) * (row[channel] - mean)
        factor = one / math.sqrt(squares / given.dtype.type(width) + given.dtype.type(NORM_EPSILON))
        for channel in range(np.uintp(width)):
            into[channel] = (row[channel] - mean) * factor * scale[channel] + bias[channel]


@compiled
def _attend(share: int, start: int, stop: int, joint: Any, keys: Any, values: Any, position: int, out: Any) -> None:
    """Writes a token's key and value, and looks up what its query asks for among all up to it."""
    _, heads, head, _ = keys.shape
    width = heads * head
    one = joint.dtype.type(1)
    half_scale = one / (math.sqrt(joint.dtype.type(head)) * (one + one))
    whole = (position // LANES + 1) * LANES
    scores = np.empty(whole, joint.dtype)
    for example in range(start, stop):
        for number in range(heads):
            left = number * head
            own_keys, own_values = keys[example, number], values[example, number]
            for channel in range(head):
                own_keys[channel, position] = joint[example, width + left + channel]
                own_values[position, channel] = joint[example, 2 * width + left + channel]
            scores[:] = one - one
            add_products(scores, joint[example, left : left + head], own_keys, 0, head, 0, whole)
            largest = scores[0]
            for site in range(1, position + 1):
                largest = max(largest, scores[site])
            for site in range(np.uintp(whole)):
                scores[site] = exp_minus_twice((largest - scores[site]) * half_scale)
            total = one - one
            for site in range(position + 1):
                total += scores[site]
            into = out[example, left : left + head]
            into[:] = one - one
            add_products(into, scores, own_values, 0, position + 1, 0, head)
            for channel in range(np.uintp(head)):
                into[channel] /= total


@compiled
def _gelu_in_float64(hidden: Any) -> None:
    """Replaces x by x Φ(x)."""
    for example in range(hidden.shape[0]):
        row = hidden[example]
        for channel in range(np.uintp(hidden.shape[1])):
            row[channel] *= 0.5 * (1 + math.erf(row[channel] * math.sqrt(0.5)))


@compiled
def _gelu_in_float32(hidden: Any) -> None:
    """The same, many at a time, by Abramowitz and Stegun's formula 7.1.26 for erf, to 1.5e-7."""
    one, half, root = np.float32(1), np.float32(0.5), np.float32(math.sqrt(0.5))
    first, second, third = np.float32(0.254829592), np.float32(-0.284496736), np.float32(1.421413741)
    fourth, fifth, rate = np.float32(-1.453152027), np.float32(1.061405429), np.float32(0.3275911)
    for example in range(hidden.shape[0]):
        row = hidden[example]
        for channel in range(np.uintp(hidden.shape[1])):
            value = row[channel]
            size = abs(value) * root
            t = one / (one + rate * size)
            series = ((((fifth * t + fourth) * t + third) * t + second) * t + first) * t
            rest = half * series * exp_minus_twice(half * size * size)  # 1 − Φ(|x|)
            row[channel] = value * (one - rest if value > 0 else rest)
