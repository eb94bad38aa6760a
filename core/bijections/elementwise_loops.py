"""Inverses of affine maps and rational-quadratic splines for compiled loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from arflows.core.bijections.elementwise import Affine, Elementwise, LocationScale
from arflows.core.bijections.spline import RationalQuadraticSpline
from arflows.core.runtime.numba_loops import compiled

_AFFINE, _LOCATION_SCALE, _SPLINE = range(3)


def settings_of(elementwise: Elementwise, dtype: np.dtype[Any]) -> tuple[int, np.ndarray] | None:
    """Return the number and the settings of a map for `invert_elementwise`; None for a map that it does not support."""
    codes = {Affine: _AFFINE, LocationScale: _LOCATION_SCALE, RationalQuadraticSpline: _SPLINE}
    code = codes.get(type(elementwise))
    if code is None:
        return None
    names = ["bound"] if code != _SPLINE else ["bound", "min_bin", "min_derivative", "derivative_offset", "raw_bound"]
    return code, np.array([getattr(elementwise, name) for name in names], dtype)


@compiled
def _invert_affine(
    parameters: Any, settings: Any, location: bool, z: Any, x: Any, log_derivative: Any, left: int, right: int
) -> None:
    """Invert `LocationScale` (``location``) by x = t + z · exp(s), or `Affine` by x = (z − t) · exp(−s)."""
    shift, raw, bound = parameters[0], parameters[1], settings[0]
    for j in range(np.uintp(left), np.uintp(right)):
        log_scale = raw[j] * bound / (abs(raw[j]) + bound)
        if location:
            x[j] = shift[j] + z[j] * math.exp(log_scale)
            log_derivative[j] = log_scale
        else:
            x[j] = (z[j] - shift[j]) * math.exp(-log_scale)
            log_derivative[j] = -log_scale


@compiled
def _bounded(raw: Any, bound: Any) -> Any:
    """Return the parameter squashed into (−bound, bound); unchanged for an infinite bound."""
    return raw if math.isinf(bound) else raw * bound / (abs(raw) + bound)


@compiled
def _bin_shares(raw: Any, j: int, settings: Any, shares: Any) -> None:
    """Share of the interval that each bin of an example takes."""
    bins, min_bin, bound = len(raw), settings[1], settings[4] / settings.dtype.type(2)
    largest = _bounded(raw[0, j], bound)
    shares[0] = largest
    for k in range(1, bins):
        shares[k] = _bounded(raw[k, j], bound)
        largest = max(largest, shares[k])
    total = shares.dtype.type(0)
    for k in range(bins):
        shares[k] = math.exp(shares[k] - largest)
        total += shares[k]
    one = shares.dtype.type(1)
    scale = (one - shares.dtype.type(bins) * min_bin) / total
    for k in range(bins):
        shares[k] = min_bin + scale * shares[k]


@compiled
def _derivative(raw: Any, knot: int, j: int, settings: Any) -> Any:
    """Return the derivative at a knot, counted from 0; it is 1 at the outer two."""
    if knot == 0 or knot > len(raw):
        return settings.dtype.type(1)
    value = _bounded(raw[knot - 1, j], settings[4]) + settings[3]
    if value > 20:
        return settings[2] + value
    return settings[2] + math.log1p(math.exp(value))


@compiled
def _invert_spline(parameters: Any, settings: Any, z: Any, x: Any, log_derivative: Any, left: int, right: int) -> None:
    """Compute `RationalQuadraticSpline.inverse`: find the bin of each value, then the derivatives of that bin."""
    bins = (len(parameters) + 1) // 3
    raw_widths, raw_heights, raw_derivatives = parameters[:bins], parameters[bins : 2 * bins], parameters[2 * bins :]
    shares = np.empty(bins, settings.dtype)
    bound = settings[0]
    zero, one = settings.dtype.type(0), settings.dtype.type(1)
    two = one + one
    smallest = settings.dtype.type(np.finfo(settings.dtype).eps) ** 2
    for j in range(left, right):
        value = z[j]
        if not abs(value) <= bound:  # the tails, and NaN
            x[j] = value
            log_derivative[j] = zero
            continue
        _bin_shares(raw_heights, j, settings, shares)
        at, passed = 0, zero
        low, high = -bound, bound
        while at < bins - 1:
            passed += shares[at]
            knot = bound * (two * passed - one)
            if not value >= knot:
                high = knot
                break
            low = knot
            at += 1
        _bin_shares(raw_widths, j, settings, shares)
        passed = zero
        for k in range(at):
            passed += shares[k]
        start = bound * (two * passed - one) if at else -bound
        width = (bound * (two * (passed + shares[at]) - one) if at < bins - 1 else bound) - start
        height = high - low
        left_slope = _derivative(raw_derivatives, at, j, settings)
        right_slope = _derivative(raw_derivatives, at + 1, j, settings)
        slope = height / width
        rise = value - low
        bend = left_slope + right_slope - two * slope
        a = height * (slope - left_slope) + rise * bend
        b = height * left_slope - rise * bend
        c = -slope * rise
        root = math.sqrt(max(b * b - two * two * a * c, smallest))
        t = (root - b) / (two * a) if b < 0 else -two * c / (b + root)
        t = min(max(t, zero), one)
        mixed = t * (one - t)
        denominator = slope + bend * mixed
        numerator = right_slope * t * t + two * slope * mixed + left_slope * (one - t) * (one - t)
        x[j] = start + t * width
        log_derivative[j] = two * (math.log(denominator) - math.log(slope)) - math.log(numerator)


@compiled
def invert_elementwise(
    code: int, settings: Any, parameters: Any, z: Any, x: Any, log_derivative: Any, left: int, right: int
) -> None:
    """Map latent → data for elements ``left`` … ``right`` − 1.

    Args:
        code: number of the map, from `settings_of`.
        settings: settings of the map, from `settings_of`.
        parameters: (parameter_count, elements).
        z: latents, (elements,).
        x: data, (elements,); written.
        log_derivative: log-derivatives ∂x/∂z, (elements,); written.
        left: first element.
        right: end of the elements.
    """
    if code == _SPLINE:
        _invert_spline(parameters, settings, z, x, log_derivative, left, right)
    else:
        _invert_affine(parameters, settings, code == _LOCATION_SCALE, z, x, log_derivative, left, right)
