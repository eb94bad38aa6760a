"""Autoregressive flows compared with zuko's and nflows' of equal size: ``python benchmarks/autoregressive.py``.

Density and samples of a MAF and of an autoregressive neural spline flow, in the same process, in turn, in float32 and
without compilation; then how the cost of a streamed sample grows with the number of variables and with the batch.
Needs ``pip install arflows[bench]``.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import OUT, measure_in_turn, table, write
from torch import Tensor

from arflows.core import flows

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import zuko
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import CompositeTransform, ReversePermutation
    from nflows.transforms import MaskedAffineAutoregressiveTransform as NflowsAffine
    from nflows.transforms import MaskedPiecewiseRationalQuadraticAutoregressiveTransform as NflowsSpline

TRANSFORMS, HIDDEN, BINS = 5, 256, 8
GOALS = {"sample_over_log_prob": 3.0, "zuko_over_ours": 25.0, "nflows_over_ours": {"MAF": 35.0, "NSF": 25.0}}

Pair = tuple[Callable[[Tensor], Tensor], Callable[[int], Tensor]]


def ours(name: str, features: int) -> Pair:
    """Our density and sampler."""
    options: dict[str, Any] = {"batch_norm": False} if name == "MAF" else {"bins": BINS}
    flow = getattr(flows, name)(features, transforms=TRANSFORMS, hidden_features=(HIDDEN, HIDDEN), **options)
    return flow.to(device()).eval().log_prob, flow.sample


def zukos(name: str, features: int) -> Pair:
    """The same of zuko."""
    options = {} if name == "MAF" else {"bins": BINS}
    flow = getattr(zuko.flows, name)(features, transforms=TRANSFORMS, hidden_features=(HIDDEN, HIDDEN), **options)
    flow.to(device()).eval()
    return lambda x: flow().log_prob(x), lambda count: flow().sample((count,))


def nflows_(name: str, features: int) -> Pair:
    """The same of nflows: a first layer and one block make two hidden layers."""
    options: dict[str, Any] = {"features": features, "hidden_features": HIDDEN, "num_blocks": 1}
    options |= {"use_residual_blocks": False}
    if name == "NSF":
        options |= {"num_bins": BINS, "tails": "linear", "tail_bound": 5.0}
    kind = NflowsAffine if name == "MAF" else NflowsSpline
    parts = [part for _ in range(TRANSFORMS) for part in (kind(**options), ReversePermutation(features))]
    flow = Flow(CompositeTransform(parts), StandardNormal([features])).to(device()).eval()
    return flow.log_prob, flow.sample


def device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def beside_peers(name: str, features: int, batch: int, threads: int, repeats: int) -> dict[str, Any]:
    """One row: our times in milliseconds, and the peers' as multiples of ours."""
    torch.set_num_threads(threads)
    x = torch.randn(batch, features, device=device())
    pairs = [make(name, features) for make in (ours, zukos, nflows_)]
    with torch.no_grad():
        densities = measure_in_turn(*(lambda f=f: f(x) for f, _ in pairs), repeats=4 * repeats, warmup=3)
        mine = measure_in_turn(*(lambda f=f: f(batch) for _, f in pairs[:1]), repeats=4 * repeats, warmup=2)
        others = measure_in_turn(*(lambda f=f: f(batch) for _, f in pairs[1:]), repeats=repeats)
    log_prob, sample = densities[0].median, mine[0].median
    return {
        "model": name,
        "device": device().type,
        "threads": threads,
        "features": features,
        "batch": batch,
        "log_prob_ms": 1e3 * log_prob,
        "sample_ms": 1e3 * sample,
        "sample/log_prob": sample / log_prob,
        "zuko/ours log_prob": densities[1].median / log_prob,
        "nflows/ours log_prob": densities[2].median / log_prob,
        "zuko/ours sample": others[0].median / sample,
        "nflows/ours sample": others[1].median / sample,
    }


def growth(axis: str, sizes: list[int], threads: int, repeats: int) -> list[dict[str, Any]]:
    """Rows along the number of variables at batch 256, or along the batch at 64 variables."""
    torch.set_num_threads(threads)
    rows = []
    for size in sizes:
        features, batch = (size, 256) if axis == "features" else (64, size)
        log_prob, sample = ours("MAF", features)
        x = torch.randn(batch, features, device=device())
        with torch.no_grad():
            density, draw = measure_in_turn(lambda: log_prob(x), lambda: sample(batch), repeats=repeats, warmup=2)  # noqa: B023
        rows.append(
            {
                "axis": axis,
                "threads": threads,
                "features": features,
                "batch": batch,
                "log_prob_ms": 1e3 * density.median,
                "sample_ms": 1e3 * draw.median,
                "sample/log_prob": draw.median / density.median,
            }
        )
    return rows


def exponent(rows: list[dict[str, Any]], quantity: str) -> float:
    """Slope of a least-squares line through log time over log size: 1 is linear growth."""
    sizes = torch.tensor([math.log(row[row["axis"]]) for row in rows])
    times = torch.tensor([math.log(row[quantity]) for row in rows])
    return float(((sizes - sizes.mean()) * (times - times.mean())).sum() / (sizes - sizes.mean()).square().sum())


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()

    rows = [
        beside_peers(name, 64, 256, threads, options.repeats) for threads in options.threads for name in ("MAF", "NSF")
    ]
    print(table(rows), end="\n\n")
    curves = [
        row
        for axis, sizes in (
            ("features", [8, 16, 32, 64, 128, 256, 512, 1024]),
            ("batch", [1, 4, 16, 64, 256, 1024, 4096]),
        )
        for row in growth(axis, sizes, options.threads[0], options.repeats)
    ]
    print(table(curves), end="\n\n")
    exponents = {
        f"{quantity.removesuffix('_ms')} over {axis}": exponent(
            [row for row in curves if row["axis"] == axis], quantity
        )
        for axis in ("features", "batch")
        for quantity in ("log_prob_ms", "sample_ms")
    }
    for name, value in exponents.items():
        print(f"time of {name} grows with exponent {value:.2f}")
    print(f"goals: sample/log_prob ≤ {GOALS['sample_over_log_prob']:g}, zuko/ours sample ≥ {GOALS['zuko_over_ours']:g}")
    path = write("autoregressive", rows, folder=options.out, growth=curves, exponents=exponents, goals=GOALS)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
