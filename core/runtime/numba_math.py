"""Mathematical functions for loops that numba compiles."""

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from arflows.core.runtime.numba_loops import OPTIONS, compiled


@compiled
def add_products(total: Any, weights: Any, inputs: Any, first: int, last: int, left: int, right: int) -> None:
    """Add Σ_k weights_k · inputs_kj to total_j, for k in [first, last) and j in [left, right).

    Eight values of k at a time, so that the totals are read and written less often.

    Args:
        total: Sums of shape (columns,); added to.
        weights: Weights of shape (rows,).
        inputs: Inputs of shape (rows, columns).
        first: First row k.
        last: End of the rows, exclusive.
        left: First column j.
        right: End of the columns, exclusive.
    """
    whole = last - (last - first) % 8
    for k in range(first, whole, 8):
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        w4, w5, w6, w7 = weights[k + 4], weights[k + 5], weights[k + 6], weights[k + 7]
        for j in range(np.uintp(left), np.uintp(right)):
            total[j] += (w0 * inputs[k, j] + w1 * inputs[k + 1, j] + w2 * inputs[k + 2, j] + w3 * inputs[k + 3, j]) + (
                w4 * inputs[k + 4, j] + w5 * inputs[k + 5, j] + w6 * inputs[k + 6, j] + w7 * inputs[k + 7, j]
            )
    for k in range(whole, last):
        weight = weights[k]
        for j in range(np.uintp(left), np.uintp(right)):
            total[j] += weight * inputs[k, j]


def exp_minus_twice(number: Any) -> Any:
    """Compute exp(−2x), with x clipped to ±20, in compiled functions; vectorised in float32."""
    raise TypeError("exp_minus_twice is for compiled loops only")


@overload(exp_minus_twice, jit_options=OPTIONS)  # type: ignore[arg-type]
def _exp_minus_twice_of(number: Any) -> Any:
    def in_float64(number: Any) -> Any:
        return math.exp(-2 * (-20.0 if number < -20.0 else 20.0 if number > 20.0 else number))

    # 2^k · exp(r), with the integer k taken from the last bits of a large number that −2x / ln 2 was added to, and the
    # exponential of |r| ≤ ½ ln 2 by its series, to 1e-7.
    def in_float32(number: Any) -> Any:
        low, high = np.float32(-20), np.float32(20)
        number = low if number < low else number
        number = high if number > high else number
        twice = np.float32(-2) * number
        shifted = twice * np.float32(1 / math.log(2)) + np.float32(3 << 22)
        rest = twice - (shifted - np.float32(3 << 22)) * np.float32(math.log(2))
        series = np.float32(1 / 720) * rest + np.float32(1 / 120)
        series = series * rest + np.float32(1 / 24)
        series = series * rest + np.float32(1 / 6)
        series = series * rest + np.float32(1 / 2)
        series = series * rest + np.float32(1)
        series = series * rest + np.float32(1)
        scale = np.uint32((np.float32(shifted).view(np.uint32) << np.uint32(23)) + np.uint32(0x3F800000))
        return series * scale.view(np.float32)

    return in_float64 if number is types.float64 else in_float32


# bfloat16 are the upper halves of float32; numba, which does not know them, gets their bits, as uint16.


def wide(number: Any) -> Any:
    """Convert a number to the type that is computed in, in compiled functions."""
    raise TypeError("wide is for compiled loops only")


def narrow(number: Any, like: Any) -> Any:
    """Round to the type of another number, ties to even, in compiled functions."""
    raise TypeError("narrow is for compiled loops only")


@overload(wide, jit_options=OPTIONS)  # type: ignore[arg-type]
def _wide_of(number: Any) -> Any:
    def of_bfloat16(number: Any) -> Any:
        return np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)

    def of_wide(number: Any) -> Any:
        return number

    return of_bfloat16 if number is types.uint16 else of_wide


@overload(narrow, jit_options=OPTIONS)  # type: ignore[arg-type]
def _narrow_to(number: Any, like: Any) -> Any:
    def to_bfloat16(number: Any, like: Any) -> Any:
        bits = np.float32(number).view(np.uint32)
        return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

    def to_wide(number: Any, like: Any) -> Any:
        return number

    return to_bfloat16 if like is types.uint16 else to_wide
