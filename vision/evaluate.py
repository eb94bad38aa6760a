"""Measure a trained flow on a test split: ``arflows vision evaluate``."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from arflows.core.commands.evaluation import per_second, provenance, write_result
from arflows.core.likelihood import Estimate, dequantization, log_probs
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.noise import PerExample, fixed_noise
from arflows.core.runtime.option_types import NonNegativeInt, PositiveInt
from arflows.core.runtime.pretrained import load_model
from arflows.core.runtime.processes import distributed_map
from arflows.data.store import Store
from arflows.vision.inputs import ImageInput
from arflows.vision.metrics import first_logit, frechet_distance, inception, logit_space_figure
from arflows.vision.model import ImageFlow
from arflows.vision.sample import draw_classes

ROUND_TRIP_IMAGES = 256


def evaluate(
    model: str,
    store: Path,
    out: Path,
    split: str = "test",
    draws: PositiveInt = 1,
    fid: NonNegativeInt = 0,
    seed: int = 0,
    batch_size: PositiveInt = 64,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure a trained flow on a split of a store: bits/dim, speed, and how exactly it is inverted.

    Of a model that takes pixels through a logit (RealNVP, MAF, MADE) it gives the negative log-density in logit space
    too, in nats, which is what the MAF paper reports, with its sign turned.

    Writes a JSON file with the figures and all that is needed to repeat them: options, model, data, software, hardware.
    A model trained by `arflows vision train` holds the moving average of its weights, which is measured.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        store: The store that holds the split.
        out: The JSON file to write; replaced if it exists.
        split: Which part of the store.
        draws: Draws of dequantisation noise for each image; published figures mostly take one.
        fid: Samples to draw for the Fréchet inception distance to all images of the split; 0 for none. The figure falls
            with the number of samples and of images, so only figures of equal numbers compare, and means nothing below
            some 2048, the number of features; published ones mostly take 50,000 samples and the train split. Needs
            `pip install torch-fidelity`, and fetches the network's weights at first use.
        seed: Seed of the noise and of the samples.
        batch_size: Images computed at a time, at most 256.
        device: Where to compute: cpu, cuda, …; auto takes a GPU if there is one.

    Returns:
        The content of the JSON file.
    """
    if fid == 1:
        raise UserError(f"fid is {fid}: give the number of samples, thousands for a figure that means something, or 0.")
    options = {
        "model": model,
        "store": str(store),
        "split": split,
        "draws": draws,
        "fid": fid,
        "seed": seed,
        "batch_size": batch_size,
    }
    start = time.perf_counter()
    flow = load_model(ImageFlow, model, device)
    data = Store(store, expect_domain="vision")
    given = ImageInput(data, flow, split=split)
    model_device = flow.device
    network = inception() if fid else None  # or says what is missing, before hours of work

    batches = given.batches(batch_size, progress=f"evaluating on {split}")
    log_prob = log_probs(flow, batches, draws=draws, seed=seed)
    figure = Estimate.of(log_prob, flow.dims, flow.likelihood, dequantization(flow, draws))
    error = max(
        flow.round_trip_error(
            batch["x"].to(model_device), batch["context"].to(model_device) if "context" in batch else None
        ).max()
        for batch in given.batches(batch_size, limit=ROUND_TRIP_IMAGES)
    )
    result: dict[str, Any] = {
        "bits_per_dim": figure.as_dict(),
        "round_trip_error": {
            "value": error.item(),
            "unit": "largest pixel difference, pixels in 0…1, float32",
            "images": min(given.count, ROUND_TRIP_IMAGES),
        },
        "samples_per_second": {
            "value": per_second(lambda: flow.sample(batch_size), batch_size, model_device),
            "batch_size": batch_size,
        },
        **provenance(flow, model, options, data.facts()),
    }
    rows = {"bits/dim": str(figure)}
    logit = first_logit(flow)
    if logit is not None:
        with fixed_noise(seed, model_device):
            density = logit_space_figure(flow, logit, log_prob, given.batches(batch_size))
        result["logit_space_nats"] = density.as_dict()
        rows["in logits"] = f"{density}, α = {logit.alpha:g}"
    rows |= {
        "round trip": f"{result['round_trip_error']['value']:.1e}, {result['round_trip_error']['unit']}",
        "samples": f"{result['samples_per_second']['value']:.1f} a second, {batch_size} at a time",
    }
    if network is not None:
        fid_facts = result["fid"] = {
            "value": frechet_distance(
                network,
                (batch["x"] for batch in given.batches(batch_size, progress=f"features of {split}")),
                _samples(flow, fid, batch_size, seed, draw_classes(model, flow, fid, seed) if flow.classes else None),
                model_device,
            ),
            "samples": fid,
            "temperature": 1.0,
            "images": given.count,
            "split": split,
            "network": "Inception-v3 of torch-fidelity, 2048 features, images resized as in TensorFlow 1",
        }
        rows["FID"] = "{value:.2f}, {samples:,} samples, {images:,} images of {split}".format(**fid_facts)
    result["seconds"] = round(time.perf_counter() - start, 1)
    write_result(out, result, rows)
    return result


def _samples(
    flow: ImageFlow, count: int, batch_size: int, seed: int, labels: Tensor | None
) -> Iterator[UInt8[Tensor, "batch channels height width"]]:
    def draw(index: int, start: int) -> Tensor:
        size = min(batch_size, count - start)
        chosen = None if labels is None else labels[start : start + size]
        return flow.sample(size, chosen, generator=PerExample(seed, start)).cpu()

    with tqdm(total=count, desc="features of samples", unit=" images", disable=None) as bar:
        for images in distributed_map(range(0, count, batch_size), draw):
            yield images
            bar.update(len(images))
