"""Sites of a MADE under an affine map, inverted by one compiled loop: `MADEStream.invert` on CPUs.

A step of a stream is a dozen small calls, and on a fast processor the calls cost several times what they compute. Here
the steps of a block of sites are one function, which numba compiles at its first use (a second or two, kept on disk).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from arflows.core.compiled import compiled

ACTIVATION_CODES = {"relu": 0, "tanh": 1, "elu": 2, "silu": 3}


@compiled
def _add_products(total: Any, weights: Any, inputs: Any, first: int, last: int, left: int, right: int) -> None:
    """Adds weights · inputs of some units for some examples; eight units at a time, so that sums are touched seldom."""
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


@compiled
def _activate(code: int, sums: Any, hidden: Any, left: int, right: int) -> None:
    if code == 0:
        for j in range(np.uintp(left), np.uintp(right)):
            hidden[j] = sums[j] if not sums[j] < 0 else 0  # what is not a number stays none
    elif code == 1:
        for j in range(np.uintp(left), np.uintp(right)):
            hidden[j] = math.tanh(sums[j])
    elif code == 2:
        for j in range(np.uintp(left), np.uintp(right)):
            hidden[j] = math.expm1(sums[j]) if sums[j] < 0 else sums[j]
    else:
        for j in range(np.uintp(left), np.uintp(right)):
            hidden[j] = sums[j] / (1 + math.exp(-sums[j]))


@compiled
def invert_block(
    start: int,
    stop: int,
    left: int,
    right: int,
    z: Any,
    x: Any,
    log_derivative: Any,
    weights: Any,
    sums: Any,
    hidden: Any,
    revealed: Any,
    skips: Any,
    activation: int,
    bound: Any,
    of_location: bool,
) -> None:
    """Latent → data for the sites ``start`` … ``stop`` − 1 of the examples ``left`` … ``right`` − 1.

    Values are (sites, batch); for each layer weights (units, inputs), sums and hidden (units, batch); sums hold
    all that the sites before ``start`` contribute. ``revealed`` (layers, sites + 1) counts the units of each hidden
    layer that are complete when a site comes next. With ``of_location`` x = t + z · exp(s), otherwise
    x = (z − t) · exp(−s); s is bounded as `Affine` does it.
    """
    last = len(weights) - 1
    for site in range(start, stop):
        inputs, past, seen = x, start, site
        for layer in range(last):
            for unit in range(revealed[layer, site], revealed[layer, site + 1]):
                total = sums[layer][unit]
                _add_products(total, weights[layer][unit], inputs, past, seen, left, right)
                if skips[layer]:
                    skipped = sums[layer - 2][unit]
                    for j in range(np.uintp(left), np.uintp(right)):
                        total[j] += skipped[j]
                _activate(activation, total, hidden[layer][unit], left, right)
            inputs, past, seen = hidden[layer], revealed[layer, start], revealed[layer, site + 1]
        shift, raw = sums[last][2 * site], sums[last][2 * site + 1]
        _add_products(shift, weights[last][2 * site], inputs, past, seen, left, right)
        _add_products(raw, weights[last][2 * site + 1], inputs, past, seen, left, right)
        for j in range(np.uintp(left), np.uintp(right)):
            log_scale = raw[j] * bound / (abs(raw[j]) + bound)
            if of_location:
                x[site, j] = shift[j] + z[site, j] * math.exp(log_scale)
                log_derivative[site, j] = log_scale
            else:
                x[site, j] = (z[site, j] - shift[j]) * math.exp(-log_scale)
                log_derivative[site, j] = -log_scale
