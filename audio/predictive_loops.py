"""Compiled sampling loop of `PredictiveFlow`, one sample per step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from arflows.core.runtime.numba_loops import compiled
from arflows.core.runtime.numba_math import add_products, exp_minus_twice, wide

_FEW = 4
"""Number of rows from which one matrix product is used instead of a product per row."""


class Weights(NamedTuple):
    """Contiguous weights of the networks, (inputs, outputs).

    If ``present``, ``residual`` and ``output_proj`` are exactly representable in bfloat16, they hold its bits as
    uint16, so that a step reads half as much memory.
    """

    input_proj: np.ndarray
    input_bias: np.ndarray
    past: np.ndarray
    present: np.ndarray
    residual: np.ndarray
    residual_bias: np.ndarray
    output_proj: np.ndarray
    output_bias: np.ndarray
    head_past: np.ndarray
    head_hidden: np.ndarray
    head_hidden_bias: np.ndarray
    head_out: np.ndarray
    head_out_bias: np.ndarray
    head_direct: np.ndarray
    dilations: np.ndarray


class Memory(NamedTuple):
    """Past samples and layer states that the next sample depends on.

    A layer of dilation d keeps the states of the last d steps, and their products with the weights, which are added
    to the gates of the next d steps. The weights are therefore read once for d steps.
    """

    waveform: np.ndarray
    excitation: np.ndarray
    levelled: np.ndarray
    states: np.ndarray
    products: np.ndarray

    @classmethod
    def empty(cls, history: int, layers: int, longest: int, channels: int, dtype: Any) -> Memory:
        """Return the memory before the first sample: silence.

        Args:
            history: number of past samples.
            layers: number of layers.
            longest: largest dilation.
            channels: channels of a layer.
            dtype: floating-point type.
        """
        waveform, excitation, levelled = (np.zeros(history, dtype) for _ in range(3))
        states = np.zeros((layers, longest, channels), dtype)
        return cls(waveform, excitation, levelled, states, np.zeros((layers, longest, 2 * channels), dtype))


class Settings(NamedTuple):
    """Sizes and constants of the model."""

    chunk: int
    subframe: int
    per_frame: int
    recent: int
    taps: int
    johnson: bool
    lightest: float
    heaviest: float
    skewest: float
    linear_from: float
    bound: float


@compiled
def _silu(values: Any) -> None:
    one = values.dtype.type(1)
    half = one / (one + one)
    for i in range(np.uintp(len(values))):
        values[i] = values[i] / (one + exp_minus_twice(half * values[i]))


@compiled
def _add_matrix(total: Any, inputs: Any, matrix: Any) -> None:
    """Add inputs · matrix (possibly bfloat16) to the total; eight rows at a time, to load the sums less often."""
    whole = len(inputs) - len(inputs) % 8
    for k in range(0, whole, 8):
        v0, v1, v2, v3 = inputs[k], inputs[k + 1], inputs[k + 2], inputs[k + 3]
        v4, v5, v6, v7 = inputs[k + 4], inputs[k + 5], inputs[k + 6], inputs[k + 7]
        r0, r1, r2, r3 = matrix[k], matrix[k + 1], matrix[k + 2], matrix[k + 3]
        r4, r5, r6, r7 = matrix[k + 4], matrix[k + 5], matrix[k + 6], matrix[k + 7]
        for j in range(np.uintp(len(total))):
            total[j] += (v0 * wide(r0[j]) + v1 * wide(r1[j]) + v2 * wide(r2[j]) + v3 * wide(r3[j])) + (
                v4 * wide(r4[j]) + v5 * wide(r5[j]) + v6 * wide(r6[j]) + v7 * wide(r7[j])
            )
    for k in range(whole, len(inputs)):
        for j in range(np.uintp(len(total))):
            total[j] += inputs[k] * wide(matrix[k, j])


@compiled
def _product(weights: Any, inputs: Any, bias: Any, out: Any) -> None:
    """Compute out = bias + inputs · weights."""
    for j in range(np.uintp(len(out))):
        out[j] = bias[j]
    _add_matrix(out, inputs, weights)


@compiled
def _step(number: int, subframe: int, added: Any, h: Any, gates: Any, passed: Any, weights: Any, memory: Any) -> None:
    """Run one step of the causal layers; ``h`` is replaced by the state after the last layer."""
    layers, channels = len(weights.dilations), np.uintp(len(h))
    one = h.dtype.type(1)
    two = one + one
    for layer in range(layers):
        dilation = weights.dilations[layer]
        slot = number % dilation
        states, products = memory.states[layer], memory.products[layer]
        if slot == 0:
            if dilation < _FEW:
                for row in range(dilation):
                    products[row] = 0
                    add_products(products[row], states[row], weights.past[layer], 0, len(h), 0, len(gates))
            else:
                np.dot(states[:dilation], weights.past[layer], products[:dilation])
        condition = added[layer, subframe]
        for j in range(np.uintp(2 * channels)):
            gates[j] = products[slot, j] + condition[j]
        for j in range(channels):
            states[slot, j] = h[j]
        _add_matrix(gates, h, weights.present[layer])
        for j in range(channels):
            e, f = exp_minus_twice(gates[j]), exp_minus_twice(gates[channels + j])
            passed[j] = two * (one - e) / ((one + e) * (one + f))
        bias = weights.residual_bias[layer]
        for j in range(channels):
            h[j] += bias[j]
        _add_matrix(h, passed, weights.residual[layer])


@compiled
def _inverse(parameters: Any, z: Any, settings: Any) -> Any:
    """Return the excitation of a latent and the log-derivative, as ``inverse`` of the elementwise maps does."""
    one = parameters.dtype.type(1)
    bound = parameters.dtype.type(settings.bound)
    log_scale = parameters[1] * bound / (abs(parameters[1]) + bound)
    if not settings.johnson:
        return parameters[0] + z * math.exp(log_scale), log_scale
    low, high = parameters.dtype.type(settings.lightest), parameters.dtype.type(settings.heaviest)
    most = parameters.dtype.type(settings.skewest)
    tail = low + (high - low) / (one + math.exp(-parameters[2]))
    skew = parameters[3] * most / (abs(parameters[3]) + most)
    cosh = math.cosh(skew)
    argument, limit = tail * z + skew, parameters.dtype.type(settings.linear_from)
    bent = min(max(argument, -limit), limit)
    s = math.sinh(bent)
    half = one / (one + one)
    beyond = (argument - bent) * math.cosh(limit)
    value = parameters[0] + (s + beyond - math.sinh(skew)) / (tail * cosh) * math.exp(log_scale)
    return value, half * math.log1p(s * s) - math.log(cosh) + log_scale


@compiled
def generate(
    first: int, z: Any, coefficients: Any, gain: Any, level: Any, lag: Any, added: Any, weights: Any, memory: Any,
    settings: Any, x: Any, log_derivative: Any,
) -> None:  # fmt: skip
    """Generate the next samples of a waveform.

    Args:
        first: index of the first sample, at the start of a frame.
        z: latents of the samples, whole sub-frames.
        coefficients: coefficients of the linear prediction, (sub-frames, order), float64.
        gain: standard deviation of the residual, (sub-frames,).
        level: standard deviation of the signal, (sub-frames,).
        lag: pitch lag in samples, from one frame before the first sample to one frame after the last.
        added: contribution of the conditions to the gates, (layers, sub-frames, 2 · channels).
        weights: weights of the networks.
        memory: past samples and layer states, updated in place.
        settings: sizes of the model.
        x: output, the samples.
        log_derivative: output, log-derivative of each sample with respect to its latent.
    """
    history, count, size, length = len(memory.waveform), len(z), settings.chunk, settings.subframe
    order, recent, taps, before = coefficients.shape[1], settings.recent, settings.taps, settings.per_frame
    dtype = z.dtype
    wave, excitation, levelled = (
        np.zeros(history + count, dtype),
        np.zeros(history + count, dtype),
        np.zeros(history + count, dtype),
    )
    wave[:history], excitation[:history], levelled[:history] = memory.waveform, memory.excitation, memory.levelled
    channels, width = len(weights.input_bias), len(weights.head_hidden_bias)
    entry, h = np.zeros(len(weights.input_proj), dtype), np.zeros(channels, dtype)
    gates, passed = np.zeros(2 * channels, dtype), np.zeros(channels, dtype)
    left = np.zeros(len(weights.output_bias), dtype)
    seen = np.zeros(len(weights.head_past), dtype)
    hidden, second = np.zeros(width, dtype), np.zeros(width, dtype)
    parameters = np.zeros(len(weights.head_out_bias), dtype)
    for start in range(0, count, size):
        subframe, at = start // length, history + start
        for i in range(2 * size):
            entry[i] = excitation[at - 2 * size + i]
            entry[2 * size + i] = levelled[at - 2 * size + i]
        if taps:
            for i in range(3 * size):
                time = start - size + i
                delayed = at - size + i - lag[_subframe(first + time, first, length, before)]
                entry[4 * size + i] = excitation[delayed]
        _product(weights.input_proj, entry, weights.input_bias, h)
        _silu(h)
        _step((first + start) // size, subframe, added, h, gates, passed, weights, memory)
        _silu(h)
        _product(weights.output_proj, h, weights.output_bias, left)
        for step in range(size):
            t = start + step
            at = history + t
            predicted = 0.0
            for k in range(order):
                predicted += coefficients[subframe, k] * wave[at - 1 - k]
            for i in range(recent):
                seen[i] = excitation[at - recent + i]
                seen[recent + i] = levelled[at - recent + i]
            filled = 2 * recent
            if taps:
                for i in range(2 * taps + 1):
                    index = _subframe(first + t - taps + i, first, length, before)
                    seen[filled + i] = excitation[at - taps + i - lag[index]]
                filled += 2 * taps + 1
            seen[filled] = predicted / level[subframe]
            seen[filled + 1] = math.log(level[subframe] / gain[subframe])
            _product(weights.head_past, seen, left[step * width : (step + 1) * width], hidden)
            _silu(hidden)
            _product(weights.head_hidden, hidden, weights.head_hidden_bias, second)
            _silu(second)
            _product(weights.head_out, second, weights.head_out_bias, parameters)
            add_products(parameters, seen, weights.head_direct, 0, len(seen), 0, len(parameters))
            value, log_slope = _inverse(parameters, z[t], settings)
            wave[at] = predicted + gain[subframe] * value
            excitation[at] = math.asinh((wave[at] - predicted) / gain[subframe])
            levelled[at] = wave[at] / level[subframe]
            x[t] = wave[at]
            log_derivative[t] = log_slope + math.log(gain[subframe])
    memory.waveform[:] = wave[count:]
    memory.excitation[:] = excitation[count:]
    memory.levelled[:] = levelled[count:]


@compiled
def _subframe(time: int, first: int, length: int, before: int) -> int:
    """Return the index in ``lag`` of a time's sub-frame; times before the waveform use its first sub-frame."""
    return max(time, 0) // length - first // length + before
