"""What is measured beside likelihood, and on which data."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

from arflows.core.errors import UserError
from arflows.data.store import Store

INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


def images_per_second(work: Callable[[], object], images: int, device: torch.device, seconds: float = 1.0) -> float:
    """Measures a speed: the median over calls, after one that does not count.

    Args:
        work: What to measure; does ``images`` images at each call.
        images: How many these are.
        device: The device it computes on.
        seconds: How long to measure, at least three calls.
    """
    durations: list[float] = []
    while len(durations) < 4 or sum(durations[1:]) < seconds:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - start)
    return images / sorted(durations[1:])[(len(durations) - 1) // 2]


def inception() -> nn.Module:
    """The network whose 2048 features published FIDs compare, with images resized as TensorFlow 1 did.

    Raises:
        UserError: If it is not installed, or its weights are not there and cannot be fetched.
    """
    try:
        return NoTrainInceptionV3("inception-v3-compat", ["2048"], antialias=False)
    except ModuleNotFoundError as error:
        raise UserError("FID needs torch-fidelity: install it by `pip install arflows[metrics]`.") from error
    except (OSError, RuntimeError, EOFError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"FID needs the weights {INCEPTION_WEIGHTS} in {folder}, which could not be fetched and read ({error}): "
            "connect to the internet once, or copy the file there."
        ) from error


@torch.no_grad()
def frechet_distance(
    network: nn.Module,
    real: Iterable[UInt8[Tensor, "batch channels height width"]],
    samples: Iterable[UInt8[Tensor, "batch channels height width"]],
    device: torch.device,
) -> float:
    """The Fréchet distance between the features of two sets of images as normal distributions: FID, with `inception`.

    Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", 2017
    (arXiv:1706.08500), equation 6. Grey images enter as colour images.

    Args:
        network: From 8-bit images (batch, 3, height, width) to features (batch, features).
        real: Batches of images, two or more images in all.
        samples: The same of those to compare with them.
        device: Where to compute the features.
    """
    distance = FrechetInceptionDistance(network).to(device)
    for batches, are_real in ((real, True), (samples, False)):
        for images in batches:
            distance.update(images.to(device).expand(-1, 3, -1, -1), real=are_real)
    return distance.compute().item()


def data_facts(store: Store) -> dict[str, Any]:
    """Which data a result was obtained on: the store, its counts, and the fingerprint of its settings."""
    return {
        "store": str(store.path),
        "source": Path(str(store.provenance.get("source"))).name,  # where it lay on one machine is nobody's business
        "available": store.provenance.get("available"),
        "fingerprint": store.fingerprint,
        "counts": store.splits,
    }
