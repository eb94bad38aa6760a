"""The vision chapter of ``arflows demo``: RealNVP on built-in digits and natural patches, from data to figures."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from arflows.core.commands.plots import score_histogram, training_curve
from arflows.core.commands.report import Chapter, Paragraph, Picture, Setup, Table
from arflows.core.likelihood import bits_per_dim, log_probs
from arflows.core.runtime.pretrained import load_model
from arflows.data.store import Store
from arflows.vision.datamodule import ImageDataset
from arflows.vision.evaluate import evaluate
from arflows.vision.model import ImageFlow
from arflows.vision.prepare import prepare
from arflows.vision.render import grid
from arflows.vision.sample import draw, interpolate
from arflows.vision.train import train

SETS = {
    "patches": "32×32 colour patches of two photographs",
    "digits": "8×8 handwritten digits",
}
SAMPLES = 64


def chapter(out: Path, seed: int = 0) -> Chapter:
    """Prepares, trains, samples, scores and evaluates on each built-in set.

    Args:
        out: Folder for stores, runs and figures; what an earlier demo left there is replaced.
        seed: Of weights, data order, noise and samples.
    """
    blocks: list[Any] = []
    results = {}
    for name, description in SETS.items():
        print(f"{name}: {description}", flush=True)
        run = out / name
        shutil.rmtree(run, ignore_errors=True)
        prepare(name, out / f"{name}.h5", seed=seed, overwrite=True)
        words = ["--config", f"demo_{name}", "--data.store", str(out / f"{name}.h5"), "--out", str(run)]
        train(*words, "--seed", str(seed))
        results[name] = evaluate(str(run), out / f"{name}.h5", out / f"{name}.json", seed=seed)
        blocks += _pictures(load_model(ImageFlow, str(run), "cpu"), out / f"{name}.h5", run, name, seed)

    blocks += [
        Paragraph(
            "A trained flow also says how well an image fits its training data. The model of patches sees the test "
            "patches, which come from regions of the photographs it never saw, and three sets that are unlike them."
        ),
        _histogram(load_model(ImageFlow, str(out / "patches"), "cpu"), out, seed),
        _figures(results),
        Setup(
            {
                "data": "built into scikit-learn: load_digits (17 grey levels), and patches of load_sample_images, "
                "training and test from disjoint regions",
                "likelihood": "lower bound by uniform dequantisation, one draw, with the standard error over images; "
                "bits/dim are therefore upper bounds",
                "budget": "minutes on a CPU: these figures show that everything works, not what the models can reach",
                "seed": seed,
            }
        ),
    ]
    return Chapter(
        "Images",
        "A multiscale RealNVP learns two small sets of images by exact maximum likelihood of their dequantised pixels. "
        "Below: training images, samples, the course of training, and scores of other images.",
        blocks,
    )


def _pictures(flow: ImageFlow, store: Path, run: Path, name: str, seed: int) -> list[Picture]:
    test = _images(store, SAMPLES)
    samples = torch.from_numpy(draw(flow, SAMPLES, 1.0, None, seed, SAMPLES)["images"])
    walk = torch.cat([interpolate(flow, test[2 * i], test[2 * i + 1], 10) for i in range(4)])
    return [
        Picture(
            grid(test), f"Test images: {SETS[name]}.", f"A grid of {SAMPLES} test images of {name}", pixelated=True
        ),
        Picture(
            grid(samples),
            f"Samples of the flow trained on {name}, at temperature 1, seed {seed}; none was selected.",
            f"A grid of {SAMPLES} images drawn by the flow trained on {name}",
            pixelated=True,
        ),
        Picture(
            grid(walk, columns=10),
            "From one test image to another through latent space: each row's ends are given, the rest is decoded.",
            f"Four rows of ten images of {name}, each changing gradually from the first to the last",
            pixelated=True,
        ),
        Picture(
            training_curve(run),
            f"Training on {name}: bits/dim of each batch, and of the validation images by the averaged weights.",
            f"A curve of bits/dim that falls over the training steps on {name}",
        ),
    ]


def _histogram(flow: ImageFlow, out: Path, seed: int) -> Picture:
    """Scores of patches like those trained on, and of images that are not."""
    patches = _images(out / "patches.h5", None)
    generator = torch.Generator().manual_seed(seed)
    digits = _images(out / "digits.h5", 200).repeat_interleave(4, -1).repeat_interleave(4, -2).expand(-1, 3, -1, -1)
    sets = {
        "test patches": patches,
        "with shuffled colour channels": patches[:, [2, 0, 1]],
        "enlarged digits": digits,
        "uniform noise": torch.randint(256, (200, *flow.spec.shape), dtype=torch.uint8, generator=generator),
    }
    scores = {
        label: bits_per_dim(log_probs(flow, ({"x": batch} for batch in images.split(64)), seed=seed), flow.dims)
        for label, images in sets.items()
    }
    return Picture(
        score_histogram({label: values.numpy() for label, values in scores.items()}),
        "Bits/dim of test patches and of images unlike the training data: to the left likely, to the right unlikely; "
        "simple images such as digits can be more likely than the data themselves, which is why `arflows vision score` "
        "ranks by typicality too.",
        "Histograms of bits/dim of the four sets, test patches apart from noise",
    )


def _figures(results: dict[str, dict[str, Any]]) -> Table:
    rows = []
    for name, result in results.items():
        bits = result["bits_per_dim"]
        rows.append(
            [
                name,
                f"{bits['value']:.3f} ± {bits['standard_error']:.3f}",
                f"{bits['count']:,}",
                f"{result['samples_per_second']['value']:.0f}",
                f"{result['round_trip_error']['value']:.1e}",
                f"{result['model']['parameters']:,}",
            ]
        )
    return Table(
        ["set", "test bits/dim", "test images", "samples/s", "round-trip error", "parameters"],
        rows,
        "Measured on the test split: bits/dim as an upper bound, samples per second on this machine, and the largest "
        "error of a pixel in 0…1 after encoding and decoding in float32.",
    )


def _images(store: Path, count: int | None) -> UInt8[Tensor, "count channels height width"]:
    dataset = ImageDataset(Store(store, expect_domain="vision"), "test", labels=False)
    return dataset.__getitems__(np.arange(min(count or len(dataset), len(dataset))).tolist())["x"]
