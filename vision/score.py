"""Rank images by their likelihood under a trained flow: ``arflows vision score``."""

from pathlib import Path

import numpy as np

from arflows.core.commands.scores import write_scores
from arflows.core.likelihood import Estimate, Reference, bits_per_dim, dequantization, log_probs
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.option_types import PositiveInt
from arflows.core.runtime.pretrained import load_model
from arflows.vision.inputs import ImageInput
from arflows.vision.model import ImageFlow

LISTED = 5


def score(
    model: str,
    images: Path,
    out: Path,
    split: str = "test",
    label: str | None = None,
    convert: bool = False,
    draws: PositiveInt = 1,
    seed: int = 0,
    batch_size: PositiveInt = 64,
    device: str = "auto",
) -> None:
    """Score images by a trained flow and write a CSV file, one line an image.

    Columns: image (file, or place in the .npz file or split), bits_per_dim (an upper bound by dequantisation;
    of a TarFlow trained with noise, by the density of noisy images), percentile (the share in percent of training
    images that are likelier; near 100: unlike the training data) and typicality (distance of bits_per_dim from its mean
    over training images, Nalisnick et al. 2019: large for images that are too unlikely or, as simple images often are,
    too likely). Rank by typicality to find images from elsewhere.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        images: A folder of image files, an image file, an .npz file with the array images, or a store.
        out: The CSV file to write; replaced if it exists.
        split: Which part of a store.
        label: The name of the class of all images, for a class-conditional model and images without labels.
        convert: Crop and reduce image files to the model's size instead of refusing those of another.
        draws: Draws of dequantisation noise for each image; more tighten the bound (Burda et al. 2016) and take longer.
            Percentile and typicality compare with the training images' scores at one draw.
        seed: Seed of the noise.
        batch_size: Images computed at a time, at most 256.
        device: Where to compute: cpu, cuda, …; auto takes a GPU if there is one.
    """
    flow = load_model(ImageFlow, model, device)
    reference = Reference.load(model)
    given = ImageInput(images, flow, split=split, label=label, convert=convert)
    log_prob = log_probs(flow, given.batches(batch_size, progress="scoring"), draws=draws, seed=seed)
    if not given.names:
        raise UserError(f"{images} holds no image that can be scored: {given.summary()}.")
    bits = bits_per_dim(log_prob, flow.dims).numpy()
    columns = {"image": given.names, "bits_per_dim": [f"{value:.6f}" for value in bits]}
    write_scores(out, columns, bits, reference)
    _summarize(
        out,
        given.names,
        bits,
        reference,
        Estimate.of(log_prob, flow.dims, flow.likelihood, dequantization(flow, draws)),
    )
    if given.skipped:
        print(f"skipped: {given.summary()}")


def _summarize(out: Path, names: list[str], bits: np.ndarray, reference: Reference | None, figure: Estimate) -> None:
    print(f"{out}: {figure}")
    if reference is None:
        return
    typicality = reference.typicality(bits[:, None])
    print(
        f"training images: {reference.mean:.4f} bits/dim; all these together differ by {reference.typicality(bits):.4f}"
    )
    order = np.argsort(-typicality)[:LISTED]
    print("least typical: " + ", ".join(f"{names[i]} ({bits[i]:.3f} bits/dim)" for i in order))
