"""Compiled loop that generates under an affine map or a spline with parameters from a `MaskedMLP`, on CPUs.

A step of a stream is a dozen small calls, whose overhead is several times the computation. Here the steps of a block of
sites are one function, which numba compiles at its first use (a second or two, cached on disk).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from arflows.core.bijections.elementwise_loops import invert_elementwise
from arflows.core.runtime.numba_loops import compiled
from arflows.core.runtime.numba_math import add_products

ACTIVATION_CODES = {"relu": 0, "tanh": 1, "elu": 2, "silu": 3}


@compiled
def _activate(code: int, sums: Any, hidden: Any, left: int, right: int) -> None:
    if code == 0:
        for j in range(np.uintp(left), np.uintp(right)):
            hidden[j] = sums[j] if not sums[j] < 0 else 0  # keeps NaN
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
def generate_block(
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
    code: int,
    settings: Any,
) -> None:
    """Map latent → data for sites ``start`` … ``stop`` − 1 of examples ``left`` … ``right`` − 1.

    Args:
        start: first site of the block.
        stop: end of the block.
        left: first example.
        right: end of the examples.
        z: latents, (sites, batch).
        x: data, (sites, batch); written.
        log_derivative: log-derivatives ∂x/∂z, (sites, batch); written.
        weights: of each layer, (units, inputs).
        sums: of each layer, with the contributions of all sites before ``start``, (units, batch); completed.
        hidden: activated sums of each hidden layer, (units, batch); written.
        revealed: number of complete units of each hidden layer when a site comes next, (layers, sites + 1).
        skips: true for layers that add the sums two layers before.
        activation: number of the nonlinearity, from `ACTIVATION_CODES`.
        code: number of the map, from `settings_of`.
        settings: settings of the map, from `settings_of`.
    """
    last = len(weights) - 1
    count = len(sums[last]) // len(z)
    for site in range(start, stop):
        inputs, past, seen = x, start, site
        for layer in range(last):
            for unit in range(revealed[layer, site], revealed[layer, site + 1]):
                total = sums[layer][unit]
                add_products(total, weights[layer][unit], inputs, past, seen, left, right)
                if skips[layer]:
                    skipped = sums[layer - 2][unit]
                    for j in range(np.uintp(left), np.uintp(right)):
                        total[j] += skipped[j]
                _activate(activation, total, hidden[layer][unit], left, right)
            inputs, past, seen = hidden[layer], revealed[layer, start], revealed[layer, site + 1]
        parameters = sums[last][count * site : count * (site + 1)]
        for number in range(count):
            weight = weights[last][count * site + number]
            add_products(parameters[number], weight, inputs, past, seen, left, right)
        invert_elementwise(code, settings, parameters, z[site], x[site], log_derivative[site], left, right)
