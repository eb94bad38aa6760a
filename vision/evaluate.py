"""Measure a trained flow on a test split: ``arflows vision evaluate``."""

import time
from pathlib import Path
from typing import Any

from arflows.core.errors import UserError
from arflows.core.evaluation import per_second, protocol, write_result
from arflows.core.likelihood import Figure, dequantization, log_probs
from arflows.core.pretrained import load_model
from arflows.data.store import Store
from arflows.vision.inputs import ImageInput
from arflows.vision.model import ImageFlow

ROUND_TRIP_IMAGES = 256


def evaluate(
    model: str,
    store: Path,
    out: Path,
    split: str = "test",
    draws: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure a trained flow on a split of a store: bits/dim, speed, and how exactly it is inverted.

    Writes a JSON file with the figures and all that is needed to repeat them: options, model, data, software, hardware.
    A model trained by `arflows vision train` holds the moving average of its weights; that is what is measured.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        store: The store that holds the split.
        out: The JSON file to write; replaced if it exists.
        split: Which part of the store.
        draws: Draws of dequantisation noise for each image; published figures mostly take one.
        seed: Seed of the noise.
        batch_size: Images computed at a time, at most 256.
        device: Where to compute: cpu, cuda, …; auto takes a GPU if there is one.

    Returns:
        What was written.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: give a number from 1 up.")
    options = {
        "model": model,
        "store": str(store),
        "split": split,
        "draws": draws,
        "seed": seed,
        "batch_size": batch_size,
    }
    start = time.perf_counter()
    flow = load_model(ImageFlow, model, device)
    facts = Store(store, expect_domain="vision").facts()
    given = ImageInput(store, flow, split=split)
    place = flow.base.origin.device

    batches = given.batches(batch_size, progress=f"evaluating on {split}")
    log_prob = log_probs(flow, batches, draws=draws, seed=seed)
    figure = Figure.of(log_prob, flow.dims, flow.likelihood, dequantization(flow, draws))
    error = max(
        flow.round_trip_error(batch["x"].to(place), batch["context"].to(place) if "context" in batch else None).max()
        for batch in given.batches(batch_size, limit=ROUND_TRIP_IMAGES)
    )
    result = {
        "bits_per_dim": figure.as_dict(),
        "round_trip_error": {
            "value": error.item(),
            "unit": "largest pixel difference, pixels in 0…1, float32",
            "images": min(given.count, ROUND_TRIP_IMAGES),
        },
        "samples_per_second": {
            "value": per_second(lambda: flow.sample(batch_size), batch_size, place),
            "batch_size": batch_size,
        },
        **protocol(flow, model, options, facts),
        "seconds": round(time.perf_counter() - start, 1),
    }
    rows = {
        "bits/dim": str(figure),
        "round trip": f"{result['round_trip_error']['value']:.1e}, {result['round_trip_error']['unit']}",
        "samples": f"{result['samples_per_second']['value']:.1f} a second, {batch_size} at a time",
    }
    write_result(out, result, rows)
    return result


def main(args: list[str] | None = None) -> None:
    """Run from the command line."""
    from arflows.core.cli import run

    run(evaluate, args, prog="arflows vision evaluate")


if __name__ == "__main__":
    main()
