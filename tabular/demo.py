"""The tabular chapter of ``arflows demo``: neural spline flows on densities of the plane."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from arflows.core.commands.report import Chapter, Picture, Setup, Table
from arflows.core.flows import VectorFlow
from arflows.core.runtime.pretrained import load_model
from arflows.data.densities import DENSITIES
from arflows.data.store import Store
from arflows.tabular.evaluate import evaluate
from arflows.tabular.prepare import prepare
from arflows.tabular.render import density_figure, density_map, extent_of, mass
from arflows.tabular.sample import draw
from arflows.tabular.train import train

SETS = {
    "two_moons": "two half circles",
    "rings": "four rings",
    "pinwheel": "five bent arms",
    "checkerboard": "eight fields of a board",
}
POINTS = 5000


def chapter(out: Path, seed: int = 0) -> Chapter:
    """Prepares, trains, samples and evaluates on each density.

    Args:
        out: Folder for stores, runs and figures; what an earlier demo left there is replaced.
        seed: Of data, weights, their order and samples.
    """
    figures, rows = [], []
    for name, description in SETS.items():
        print(f"{name}: {description}", flush=True)
        store, run = out / f"{name}.h5", out / name
        shutil.rmtree(run, ignore_errors=True)
        prepare(name, store, seed=seed, overwrite=True)
        words = ["--config", "demo_plane", "--data.store", str(store), "--out", str(run), "--seed", str(seed)]
        train(*words)
        flow = load_model(VectorFlow, str(run), "cpu")
        figure, integral = _picture(flow, store, name, description, seed)
        figures.append(figure)
        rows.append(_row(name, evaluate(str(run), store, out / f"{name}.json", device="cpu"), integral))
    return Chapter(
        "Densities of the plane",
        "Autoregressive neural spline flows learn four densities of the plane by exact maximum likelihood. A flow is a "
        "density: it can be drawn, integrates to one, and is sampled by inverting it.",
        [
            *figures,
            Table(
                ["density", "test log-likelihood", "best there is", "∫ density", "samples/s", "trained"],
                rows,
                "Mean log-density of the test points in nats with its standard error, beside that of the true density "
                "where it is known in closed form (minus its entropy: for the board −ln 32, 32 being the area of its "
                "fields); the integral of the flow's density over a grid around the data; samples per second, and "
                "seconds of training, on this machine.",
            ),
            Setup(
                {
                    "data": "50,000 points of each density: 80 % to train on, 10 % to validate, 10 % to test",
                    "likelihood": "exact density of continuous data, in the data's own units",
                    "model": "recipe demo_plane: two autoregressive rational-quadratic splines",
                    "budget": "seconds on a CPU core: these figures show that all works, not what flows can reach",
                    "seed": seed,
                }
            ),
        ],
    )


def _picture(flow: VectorFlow, store: Path, name: str, description: str, seed: int) -> tuple[Picture, float]:
    """Density, samples and data side by side; and the integral of the density."""
    data = np.array(Store(store, expect_domain="tabular").array("test", "x"))
    samples = draw(flow, POINTS, seed=seed, batch_size=POINTS)["x"]
    extent, wide = extent_of(data), extent_of(data, margin=1.0)
    integral = mass(density_map(flow, wide, resolution=400), wide)
    picture = density_figure(density_map(flow, extent), [("samples", samples), ("test data", data)], extent)
    return (
        Picture(
            picture,
            f"{name}, {description}: the learned density (bright is dense), points drawn from it with seed {seed}, of "
            "which none was selected, and points of the true density that it was not trained on.",
            f"A heat map of {description}, beside two clouds of points of the same shape",
        ),
        integral,
    )


def _row(name: str, result: dict[str, Any], integral: float) -> list[str]:
    figure, entropy = result["log_likelihood"], DENSITIES[name].entropy
    return [
        name,
        f"{figure['value']:.3f} ± {figure['standard_error']:.3f}",
        "not known" if entropy is None else f"{-entropy:.3f}",
        f"{integral:.4f}",
        f"{result['samples_per_second']['value']:,.0f}",
        f"{result['training']['seconds']:.0f} s",
    ]
