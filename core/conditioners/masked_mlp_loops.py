"""Sites of a MADE under an affine map or a spline, inverted by one compiled loop: `MaskedMLPStream.invert` on CPUs.

A step of a stream is a dozen small calls, and on a fast processor the calls cost several times what they compute. Here
the steps of a block of sites are one function, which numba compiles at its first use (a second or two, kept on disk).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from arflows.core.bijections.elementwise_loops import invert_elementwise
from arflows.core.runtime.numba_loops import add_products, compiled

ACTIVATION_CODES = {"relu": 0, "tanh": 1, "elu": 2, "silu": 3}


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
    code: int,
    settings: Any,
) -> None:
    """Latent → data for the sites ``start`` … ``stop`` − 1 of the examples ``left`` … ``right`` − 1.

    Values are (sites, batch); for each layer weights (units, inputs), sums and hidden (units, batch); sums hold
    all that the sites before ``start`` contribute. ``revealed`` (layers, sites + 1) counts the units of each hidden
    layer that are complete when a site comes next. ``code`` and ``settings`` are those of `settings_of`.
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
