"""Two-dimensional toy densities, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import e, log, pi

import numpy as np
from jaxtyping import Float64

Points = Float64[np.ndarray, "count 2"]

_NOISE = 0.08
_RADII = np.array([1.0, 2.0, 3.0, 4.0])
_ARMS = 5


@dataclass(frozen=True)
class PlaneDensity:
    """A density of the plane.

    Attributes:
        draw: Draws points.
        entropy: Its entropy in nats, which no model's mean negative log-likelihood can fall below; None if it has no
            closed form.
    """

    draw: Callable[[int, np.random.Generator], Points]
    entropy: float | None = None


def two_moons(count: int, generator: np.random.Generator) -> Points:
    """Draw from two half circles of radius 1 that reach into each other."""
    angle, lower = generator.uniform(0, pi, count), generator.random(count) < 0.5
    points = np.stack([np.cos(angle), np.sin(angle)], 1)
    points[lower] = [1.0, 0.5] - points[lower]
    return points + generator.normal(0, _NOISE, points.shape)


def rings(count: int, generator: np.random.Generator) -> Points:
    """Draw from four rings around the origin, each as likely as the others."""
    radius = generator.choice(_RADII, count) + generator.normal(0, _NOISE, count)
    return _polar(radius, generator.uniform(0, 2 * pi, count))


def pinwheel(count: int, generator: np.random.Generator) -> Points:
    """Draw from five bent arms (Johnson et al. 2016, arXiv:1603.06277, figure 1)."""
    along, across = 1 + generator.normal(0, 0.3, count), generator.normal(0, 0.1, count)
    turn = generator.integers(_ARMS, size=count) * 2 * pi / _ARMS + 0.25 * np.exp(along)
    points = np.stack([along * np.cos(turn) - across * np.sin(turn), along * np.sin(turn) + across * np.cos(turn)], 1)
    return 2 * points


def checkerboard(count: int, generator: np.random.Generator) -> Points:
    """Draw evenly from the eight dark fields, of 2×2, of a board that covers [−4, 4]²."""
    column = generator.integers(4, size=count)
    row = 2 * generator.integers(2, size=count) + column % 2
    return 2 * (np.stack([column, row], 1) + generator.random((count, 2))) - 4


def eight_gaussians(count: int, generator: np.random.Generator) -> Points:
    """Draw from eight normal densities around a circle of radius 4."""
    points = _polar(np.full(count, 4.0), generator.integers(8, size=count) * pi / 4)
    return points + generator.normal(0, 0.3, points.shape)


def spirals(count: int, generator: np.random.Generator) -> Points:
    """Draw from two arms that wind one and a half times around the origin."""
    angle = 3 * pi * np.sqrt(generator.random(count))
    points = generator.choice([-1.0, 1.0], count)[:, None] * _polar(angle / 2, angle)
    return points + generator.normal(0, 0.1, points.shape)


def _polar(radius: Float64[np.ndarray, " count"], angle: Float64[np.ndarray, " count"]) -> Points:
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


DENSITIES = {
    "two_moons": PlaneDensity(two_moons),
    # −E log p = log 4 + log 2π + E log r + the entropy of the noise, as the rings do not overlap; E log r to 2nd order
    "rings": PlaneDensity(
        rings,
        log(4)
        + log(2 * pi)
        + float((np.log(_RADII) - _NOISE**2 / (2 * _RADII**2)).mean())
        + 0.5 * log(2 * pi * e * _NOISE**2),
    ),
    "pinwheel": PlaneDensity(pinwheel),
    "checkerboard": PlaneDensity(checkerboard, log(8 * 4)),
    "eight_gaussians": PlaneDensity(eight_gaussians, log(8) + log(2 * pi * e * 0.3**2)),
    "spirals": PlaneDensity(spirals),
}
