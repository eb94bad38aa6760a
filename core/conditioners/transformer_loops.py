"""Compiled loops over tokens and layers for transformer generation on CPUs.

A token is so little work that the overhead of calls exceeds most of the computation, and PyTorch's matrix products and
attention are optimised for many rows and queries. Here a step is one call, and so is a whole generation for a map of
`elementwise_loops`. Products of few rows are NumPy's, and attention reads the cache once. Threads share the examples
and synchronise only at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arflows.core.bijections.elementwise_loops import invert_elementwise
from arflows.core.runtime.numba_loops import compiled, compiled_comparing, compiled_summing
from arflows.core.runtime.numba_math import add_products, exp_minus_twice
from arflows.core.runtime.threads import in_shares, multiplying

NORM_EPSILON = 1e-5
"""Epsilon of `torch.nn.LayerNorm`."""
LANES = 16
"""Scores are computed for multiples of this number of sites, because the remainder of a vector loop is slow."""
LEAST_PRODUCTS = 20_000_000
"""Smallest number of multiply-adds for a thread: about 0.4 ms, a few times the cost of starting it."""


class Weights(NamedTuple):
    """Weights of a step, those of the layers stacked; matrices multiply from the right.

    The norms of a layer are scale and bias of the norm before its attention, then of the norm before its perceptron.
    """

    input_proj: Any  # (channels, width)
    positions: Any  # (sites, width)
    shift: Any  # (batch, width)
    norms: Any  # (layers, 4, width)
    project: Any  # (layers, width, 3 · width)
    out_proj: Any  # (layers, width, width)
    fc1: Any  # (layers, width, inner)
    fc2: Any  # (layers, inner, width)
    norm: Any  # (2, width)
    output_proj: Any  # (width, channels · parameters)
    bias: Any  # (channels · parameters,)


class TokenLoops:
    """Steps of a generation.

    Keys are stored channel by channel, so that the scores of many sites are computed together.

    Args:
        weights: the fields of `Weights` in order, as tensors; a list with one for each layer where they are stacked.
        keys: memory for the keys until `restore` is called; its last axis is a multiple of `LANES`.
        values: memory for the values.
    """

    def __init__(
        self,
        weights: Sequence[Tensor | Sequence[Tensor]],
        keys: Float[Tensor, "layers batch heads head padded_sites"],
        values: Float[Tensor, "layers batch heads sites head"],
    ) -> None:
        # Copied by NumPy: PyTorch's threads spin for milliseconds after work, on the processors needed here.
        arrays = (
            each.detach().numpy() if isinstance(each, Tensor) else np.stack([layer.detach().numpy() for layer in each])
            for each in weights
        )
        self.weights = Weights(*map(np.ascontiguousarray, arrays))
        self.keys = keys
        self.cache = keys.numpy(), values.numpy()
        matrices = (self.weights.project, self.weights.out_proj, self.weights.fc1, self.weights.fc2)
        self.products = sum(matrix.size for matrix in matrices)

    def restore(self, keys: Float[Tensor, "layers batch heads sites head"]) -> None:
        """Copy the keys of the first sites to the cache of `TransformerStream`."""
        keys.copy_(self.keys[..., : keys.shape[3]].transpose(-1, -2))

    def step(
        self, previous: Float[Tensor, "batch channels"], position: int
    ) -> Float[Tensor, "batch parameters_of_a_token"]:
        """Return the parameters of the token at ``position``, given the token before it; write its keys and values."""
        parameters = previous.new_empty(len(previous), len(self.weights.bias))
        arrays = (previous.contiguous().numpy(), position, self.weights, *self.cache, parameters.numpy())
        self._in_shares(_step, len(previous), 1, *arrays)
        return parameters

    def generate(
        self, z: Float[Tensor, "batch sites channels"], code: int, settings: np.ndarray
    ) -> tuple[Float[Tensor, "batch sites channels"], Float[Tensor, "batch sites channels"]]:
        """Map latent → data for all tokens.

        Args:
            z: latents.
            code: number of the map, from `settings_of`.
            settings: settings of the map, from `settings_of`.

        Returns:
            x and the elementwise log-derivative ∂x/∂z.
        """
        x, log_derivative = (torch.empty_like(z, memory_format=torch.contiguous_format) for _ in range(2))
        arrays = (tensor.contiguous().numpy() for tensor in (z, x, log_derivative))
        self._in_shares(_generate, len(z), z.shape[1], *arrays, self.weights, *self.cache, code, settings)
        return x, log_derivative

    def _in_shares(self, loop: Any, count: int, tokens: int, *arguments: Any) -> None:
        least = 1 + LEAST_PRODUCTS // (tokens * self.products)
        with multiplying():
            in_shares(loop, count, least, *arguments)


@compiled
def _step(
    share: int, start: int, stop: int, previous: Any, position: int, weights: Any, keys: Any, values: Any, out: Any
) -> None:
    _take_token(previous[start:stop], position, start, weights, keys, values, out[start:stop])


@compiled
def _generate(
    share: int,
    start: int,
    stop: int,
    z: Any,
    x: Any,
    log_derivative: Any,
    weights: Any,
    keys: Any,
    values: Any,
    code: int,
    settings: Any,
) -> None:
    _, sites, channels = z.shape
    count = len(weights.bias) // channels
    previous = np.zeros((stop - start, channels), z.dtype)
    parameters = np.empty((stop - start, channels, count), z.dtype)
    for site in range(sites):
        _take_token(previous, site, start, weights, keys, values, parameters.reshape((stop - start, channels * count)))
        for example in range(stop - start):
            solved = x[start + example, site]
            own_log_derivative = log_derivative[start + example, site]
            invert_elementwise(
                code, settings, parameters[example].T, z[start + example, site], solved, own_log_derivative, 0, channels
            )
            previous[example] = solved


@compiled
def _take_token(
    previous: Any, position: int, start: int, weights: Any, keys: Any, values: Any, parameters: Any
) -> None:
    """Compute `CausalTransformer` for the token at ``position``; write its parameters, keys and values.

    Shapes, for the examples from ``start`` on: previous (examples, channels), parameters (examples, channels ·
    parameters).
    """
    layers, width, inner = weights.fc1.shape
    count = len(previous)
    hidden = np.empty((count, width), previous.dtype)
    normed, seen, update = np.empty_like(hidden), np.empty_like(hidden), np.empty_like(hidden)
    joint = np.empty((count, 3 * width), previous.dtype)
    expanded = np.empty((count, inner), previous.dtype)
    np.dot(previous, weights.input_proj, hidden)
    for example in range(count):
        hidden[example] += weights.positions[position] + weights.shift[start + example]
    for layer in range(layers):
        norms = weights.norms[layer]
        _normalise(hidden, norms[0], norms[1], normed)
        np.dot(normed, weights.project[layer], joint)
        _attend(start, joint, keys[layer], values[layer], position, seen)
        np.dot(seen, weights.out_proj[layer], update)
        hidden += update
        _normalise(hidden, norms[2], norms[3], normed)
        np.dot(normed, weights.fc1[layer], expanded)
        if hidden.itemsize == 8:
            _gelu_in_float64(expanded)
        else:
            _gelu_in_float32(expanded)
        np.dot(expanded, weights.fc2[layer], update)
        hidden += update
    _normalise(hidden, weights.norm[0], weights.norm[1], normed)
    np.dot(normed, weights.output_proj, parameters)
    parameters += weights.bias


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
def _attend(start: int, joint: Any, keys: Any, values: Any, position: int, out: Any) -> None:
    """Write the key and value of a token, and the attention of its query to all tokens up to it."""
    _, heads, head, _ = keys.shape
    width = heads * head
    one = joint.dtype.type(1)
    half_scale = one / (math.sqrt(joint.dtype.type(head)) * (one + one))
    whole = (position // LANES + 1) * LANES
    scores = np.empty(whole, joint.dtype)
    for example in range(len(joint)):
        for number in range(heads):
            left = number * head
            own_keys, own_values = keys[start + example, number], values[start + example, number]
            for channel in range(head):
                own_keys[channel, position] = joint[example, width + left + channel]
                own_values[position, channel] = joint[example, 2 * width + left + channel]
            scores[:] = one - one
            add_products(scores, joint[example, left : left + head], own_keys, 0, head, 0, whole)
            largest = _largest(scores, position + 1)
            for site in range(np.uintp(whole)):
                scores[site] = exp_minus_twice((largest - scores[site]) * half_scale)
            total = _sum(scores, position + 1)
            into = out[example, left : left + head]
            into[:] = one - one
            add_products(into, scores, own_values, 0, position + 1, 0, head)
            for channel in range(np.uintp(head)):
                into[channel] /= total


@compiled_comparing
def _largest(numbers: Any, count: int) -> Any:
    largest = numbers[0]
    for site in range(np.uintp(count)):
        largest = numbers[site] if numbers[site] > largest else largest
    return largest


@compiled_summing
def _sum(numbers: Any, count: int) -> Any:
    total = numbers.dtype.type(0)
    for site in range(np.uintp(count)):
        total += numbers[site]
    return total


@compiled
def _gelu_in_float64(hidden: Any) -> None:
    """Replace x by x Φ(x)."""
    for example in range(hidden.shape[0]):
        row = hidden[example]
        for channel in range(np.uintp(hidden.shape[1])):
            row[channel] *= 0.5 * (1 + math.erf(row[channel] * math.sqrt(0.5)))


@compiled
def _gelu_in_float32(hidden: Any) -> None:
    """Replace x by x Φ(x), with erf by Abramowitz and Stegun's formula 7.1.26, which is exact to 1.5e-7."""
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
