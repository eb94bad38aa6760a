from math import pi

import numpy as np
import pytest

from arflows.data.densities import DENSITIES


def points(name, count=20_000, seed=0):
    return DENSITIES[name].draw(count, np.random.default_rng(seed))


@pytest.mark.parametrize("name", DENSITIES)
def test_points_follow_from_the_seed(name):
    drawn = points(name)
    assert drawn.shape == (20_000, 2)
    np.testing.assert_array_equal(drawn, points(name))
    assert not np.array_equal(drawn, points(name, seed=1))


def log_rings(x):
    radius = np.hypot(*x.T)
    ring = np.exp(-0.5 * ((radius[:, None] - [1, 2, 3, 4]) / 0.08) ** 2) / (0.08 * np.sqrt(2 * pi))
    return np.log(ring.mean(1) / (2 * pi * radius))


def log_gaussians(x):
    angles = np.arange(8) * pi / 4
    centres = 4 * np.stack([np.cos(angles), np.sin(angles)], 1)
    square = ((x[:, None] - centres) ** 2).sum(-1)
    return np.log((np.exp(-0.5 * square / 0.09) / (2 * pi * 0.09)).mean(1))


def log_board(x):
    dark = np.floor(x / 2).sum(1) % 2 == 0
    return np.where(dark & (np.abs(x) <= 4).all(1), -np.log(32), -np.inf)


@pytest.mark.parametrize(
    ("name", "log_density"), [("rings", log_rings), ("eight_gaussians", log_gaussians), ("checkerboard", log_board)]
)
def test_entropy_is_that_of_the_density_drawn_from(name, log_density):
    values = log_density(points(name, 200_000))
    assert -values.mean() == pytest.approx(DENSITIES[name].entropy, abs=0.01)


def test_board_is_evenly_covered():
    fields, counts = np.unique(np.floor(points("checkerboard") / 2), axis=0, return_counts=True)
    assert len(fields) == 8
    assert counts.min() > 2300


def test_moons_and_spirals_lie_along_their_lines():
    x = points("two_moons")
    upper = np.abs(np.hypot(*x.T) - 1)
    lower = np.abs(np.hypot(*(x - [1, 0.5]).T) - 1)
    assert np.minimum(upper, lower).max() < 0.4
    assert 0.4 < (upper < lower).mean() < 0.6
    x = points("spirals")
    radius, angle = np.hypot(*x.T), np.arctan2(*x.T[::-1]) % pi
    turns = np.abs((2 * radius[:, None] - angle[:, None]) - np.arange(4) * pi).min(1)
    assert np.quantile(turns[radius > 1], 0.99) < 1
