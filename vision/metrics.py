"""Metrics of images other than the likelihood."""

from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

from arflows.core.bijections import Chain, Logit
from arflows.core.likelihood import Batch, Estimate, dequantization
from arflows.core.runtime.errors import UserError
from arflows.vision.image_flow import ImageFlow

INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


def inception() -> nn.Module:
    """Inception network of published FIDs, with 2048 features and images resized as in TensorFlow 1.

    Raises:
        UserError: If it is not installed, or its weights are missing and cannot be downloaded.
    """
    try:
        return NoTrainInceptionV3("inception-v3-compat", ["2048"], antialias=False)
    except ModuleNotFoundError as error:
        raise UserError("FID needs torch-fidelity: install it by `pip install torch-fidelity`.") from error
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


def first_logit(flow: ImageFlow) -> Logit | None:
    """The logit that pixels go through first, if the flow begins with one."""
    first = next(iter(flow.bijection), None) if isinstance(flow.bijection, Chain) else None
    return first if isinstance(first, Logit) else None


@torch.no_grad()
def logit_space_figure(
    flow: ImageFlow, logit: Logit, log_prob: Float[Tensor, " count"], batches: Iterable[Batch]
) -> Estimate:
    """Negative log-density of dequantised images in logit space, in nats, as Papamakarios et al. report it.

    Papamakarios, Pavlakou & Murray 2017 (arXiv:1705.07057), appendix E: log p(logit) = log p(y) − log|∂ logit/∂y|, the
    density of y in [0, 1] being the probability of the discrete image over the volume of its cell.

    Args:
        flow: The model, of images without a frame.
        logit: Its first bijection.
        log_prob: Bounds on the log-probabilities of the images, in nats.
        batches: The same images in the same order; they get new noise, which does not bias the mean.
    """
    dequantizer = flow.dequantizer
    assert dequantizer is not None
    volumes = []
    for batch in batches:
        y, log_cell = dequantizer(batch["x"].to(flow.device))
        volumes.append((logit(y)[1] + log_cell).cpu())
    return Estimate.of(log_prob.cpu() - torch.cat(volumes), None, "density", dequantization(flow))
