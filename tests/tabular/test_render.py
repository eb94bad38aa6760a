import numpy as np
import pytest
import torch

from arflows.core import flows
from arflows.core.flows import VectorFlow
from arflows.tabular.render import density_figure, density_map, extent_of, mass

SHIFT, SCALE = torch.tensor([40.0, -0.5]), torch.tensor([3.0, 0.02])


def shaken(kind, features=2, context=0):
    """Not the identity, and in units of its own."""
    torch.manual_seed(0)
    flow = kind(features, context, hidden_features=(16,)).eval()
    for parameter in flow.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(1000, features) * SCALE[:features] + SHIFT[:features]
    flow.initialize(x, 1950 + torch.rand(1000, context) if context else None)
    return flow


@pytest.mark.parametrize("kind", [flows.MAF, flows.MADE, flows.IAF, flows.NSF, flows.RealNVP, flows.NSFC])
def test_densities_of_the_plane_integrate_to_one(kind):
    flow = shaken(kind)
    (left, bottom), (right, top) = (SHIFT - 8 * SCALE).tolist(), (SHIFT + 8 * SCALE).tolist()
    extent = (left, right, bottom, top)
    assert mass(density_map(flow, extent, resolution=800), extent) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", [flows.MAF, flows.NSF])
def test_densities_of_the_line_integrate_to_one_whatever_they_are_conditioned_on(kind):
    flow = shaken(kind, 1, context=1)
    low, high = 40 - 150.0, 40 + 150.0
    grid = torch.linspace(low, high, 100_001)[:, None]
    for year in (1950.2, 1950.9):
        with torch.no_grad():
            density = flow.log_prob(grid, torch.tensor([[year]])).exp().double()
        assert torch.trapezoid(density, grid[:, 0].double()).item() == pytest.approx(1, abs=1e-3)


def test_a_trained_flow_integrates_to_one(moons_run):
    flow, extent = VectorFlow.from_pretrained(moons_run / "model"), (-12.0, 12.0, -12.0, 12.0)
    assert mass(density_map(flow, extent, resolution=600), extent) == pytest.approx(1, abs=1e-3)


def test_the_map_shows_where_the_points_are():
    """Rows from below, columns from the left: a transposed or upside-down map would not agree with a histogram."""
    flow = shaken(flows.MAF)
    drawn = flow.sample(200_000, generator=torch.Generator().manual_seed(0)).numpy()
    left, right, bottom, top = extent = extent_of(drawn)
    density = density_map(flow, extent, resolution=12)
    counts, _, _ = np.histogram2d(drawn[:, 1], drawn[:, 0], bins=12, range=[[bottom, top], [left, right]])
    cell = (right - left) * (top - bottom) / 144
    np.testing.assert_allclose(counts / len(drawn) / cell, density, atol=0.12 * density.max())


def test_stray_points_do_not_shrink_the_picture():
    points = np.concatenate([np.random.default_rng(0).uniform(-1, 1, (5000, 2)), [[1e4, 1e4]]])
    assert extent_of(points.astype(np.float32)) == pytest.approx((-1.2, 1.2, -1.2, 1.2), abs=0.05)


def test_the_figure_has_a_panel_for_the_density_and_each_set():
    flow = shaken(flows.MAF)
    points = flow.sample(100).numpy()
    extent = extent_of(points)
    figure = density_figure(density_map(flow, extent), [("data", points), ("samples", points)], extent, ("u", "v"))
    assert [axes.get_title() for axes in figure.axes] == ["density of the flow", "data (100)", "samples (100)"]
    assert all(axes.get_xlim() == pytest.approx(extent[:2]) for axes in figure.axes)
