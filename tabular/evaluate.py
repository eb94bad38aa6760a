"""Measure a trained flow on a test split: ``arflows tabular evaluate``."""

import time
from pathlib import Path
from typing import Any

import torch

from arflows.core.commands.evaluation import per_second, provenance, write_result
from arflows.core.flows import VectorFlow
from arflows.core.inversion import SOLVERS, SolverName, relative_residual, use_solver
from arflows.core.likelihood import Estimate, log_probs
from arflows.core.runtime.option_types import PositiveInt
from arflows.core.runtime.pretrained import load_model
from arflows.data.store import Store
from arflows.tabular.columns import Columns
from arflows.tabular.inputs import Rows

ROUND_TRIP_ROWS = 1000


def evaluate(
    model: str,
    store: Path,
    out: Path,
    split: str = "test",
    solver: SolverName = "sequential",
    batch_size: PositiveInt = 1000,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure a trained flow on a split of a store: log-likelihood, speed, and round-trip error.

    Writes a JSON file with the figures and everything that is needed to repeat them: options, model, data, software,
    hardware. A model trained by `arflows tabular train` holds the moving average of its weights, which is measured. The
    log-likelihood is in the units of the rows, so published figures of standardised data need standardised rows.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        store: The store that holds the split.
        out: JSON file to write; replaced if it exists.
        split: Split of the store.
        solver: Solver that inverts autoregressive flows; see `arflows tabular sample`.
        batch_size: Rows computed at a time.
        device: Device: cpu, cuda, …; auto uses a GPU if available.

    Returns:
        The content of the JSON file.
    """
    options = {"model": model, "store": str(store), "split": split, "solver": solver, "batch_size": batch_size}
    start = time.perf_counter()
    flow = load_model(VectorFlow, model, device)
    data = Store(store, expect_domain="tabular")
    given = Rows.read(data, split, flow, Columns.of(model, flow))
    model_device = flow.device

    log_prob = log_probs(flow, given.batches(batch_size, progress=f"evaluating on {split}"))
    loss = Estimate.of(log_prob, None, flow.likelihood)
    some = next(given.first(ROUND_TRIP_ROWS).batches(ROUND_TRIP_ROWS))
    x, context = some["x"].to(model_device), some["context"].to(model_device) if "context" in some else None
    with torch.no_grad(), use_solver(SOLVERS[solver]()):
        error = relative_residual(flow.decode(flow.encode(x, context), context), x)
    row = None if context is None else context[:1]
    result = {
        "log_likelihood": {
            "value": -loss.value,
            "standard_error": loss.standard_error,
            "unit": "nats",
            "kind": loss.kind,
            "count": loss.count,
        },
        "round_trip_error": {
            "value": error,
            "unit": "largest |x' − x| / max(1, |x|), float32",
            "rows": len(x),
        },
        "samples_per_second": {
            "value": per_second(
                lambda: flow.sample(batch_size, row, solver=SOLVERS[solver]()), batch_size, model_device
            ),
            "batch_size": batch_size,
            "solver": solver,
        },
        **provenance(flow, model, options, data.facts()),
        "seconds": round(time.perf_counter() - start, 1),
    }
    error_bar = f"± {loss.standard_error:.4f} (s.e.; two are {2 * loss.standard_error:.4f})"
    rows = {
        "log-likelihood": f"{-loss.value:.4f} {error_bar} nats, density of continuous data, over {loss.count:,} rows",
        "round trip": f"{error:.1e}, {result['round_trip_error']['unit']}",
        "samples": f"{result['samples_per_second']['value']:,.0f} a second, {batch_size} at a time, {solver}",
    }
    write_result(out, result, rows)
    return result
