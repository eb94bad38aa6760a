"""Masked autoregressive flows for images: every pixel value from the ones before it, in raster order."""

from collections.abc import Sequence

from arflows.core.bases import StandardNormal
from arflows.core.bijections import Affine, BatchNorm, Chain, Flatten, Logit
from arflows.core.flows.layers import autoregressive_layers, with_batch_norm
from arflows.vision.image_flow import ImageFlow, image_spec


class MAF(ImageFlow):
    """Masked autoregressive flow over pixels: affine autoregressive layers in raster order and its reverse in turn.

    Papamakarios, Pavlakou & Murray, "Masked autoregressive flow for density estimation", 2017 (arXiv:1705.07057), with
    the paper's preprocessing (section 4.3): dequantised pixels x of [0, 1] enter as logit(α + (1 − 2α) x).

    Args:
        image_size: height and width, or one number for both.
        channels: 1 for grey images, 3 for colour.
        transforms: number of autoregressive layers; the paper uses 5 and 10.
        hidden_features: widths of the networks' hidden layers.
        batch_norm: normalise before, between and after the layers, by the batch in training.
        alpha: share of the unit interval kept free at each end: 1e-6 for MNIST, 0.05 for CIFAR-10 in the paper.
        classes: number or names of the classes of a class-conditional model; 0 for an unconditional one.
        bits: bits of a pixel value, 1 to 16.

    >>> flow = MAF(image_size=(2, 3), channels=1, transforms=2, hidden_features=(8,), bits=12).eval()
    >>> images = flow.sample(5)
    >>> images.shape, images.dtype
    (torch.Size([5, 1, 2, 3]), torch.int32)
    >>> flow.log_prob(images).shape
    torch.Size([5])
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 28,
        channels: int = 1,
        transforms: int = 5,
        hidden_features: Sequence[int] = (1024, 1024),
        batch_norm: bool = True,
        alpha: float = 1e-6,
        classes: int | Sequence[str] = 0,
        bits: int = 8,
    ) -> None:
        spec = image_spec(image_size, channels, bits)
        context_features = min(hidden_features[0], 64) if classes else 0
        layers = autoregressive_layers(Affine, spec.dims, context_features, transforms, hidden_features)
        if batch_norm:
            layers = [BatchNorm(spec.dims, statistics="batch"), *with_batch_norm(layers, spec.dims)]
        bijection = Chain(Logit(alpha), Flatten(spec.shape), *layers)
        base = StandardNormal((spec.dims,))
        super().__init__(spec, bijection, base, (spec.height, spec.width), classes, context_features)


class MADE(MAF):
    """Masked autoencoder for distribution estimation, over pixels: `MAF` with one layer.

    Germain, Gregor, Murray & Larochelle, 2015 (arXiv:1502.03509), with normal conditionals and preprocessing as in
    Papamakarios et al. 2017 (arXiv:1705.07057).

    Args:
        image_size: height and width, or one number for both.
        channels: 1 for grey images, 3 for colour.
        hidden_features: widths of the network's hidden layers.
        alpha: share of the unit interval kept free at each end: 1e-6 for MNIST, 0.05 for CIFAR-10 in the paper.
        classes: number or names of the classes of a class-conditional model; 0 for an unconditional one.
        bits: bits of a pixel value, 1 to 16.

    >>> MADE(image_size=(2, 3), channels=1, hidden_features=(8,)).dims
    6
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 28,
        channels: int = 1,
        hidden_features: Sequence[int] = (1024, 1024),
        alpha: float = 1e-6,
        classes: int | Sequence[str] = 0,
        bits: int = 8,
    ) -> None:
        super().__init__(image_size, channels, 1, hidden_features, True, alpha, classes, bits)
