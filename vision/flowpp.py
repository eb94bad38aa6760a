"""Flow++ for images."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arflows.core.bases import DiagonalNormal, StandardNormal
from arflows.core.bijections import (
    Affine,
    Bijection,
    Chain,
    ChannelMask,
    ColumnMask,
    Coupling,
    ElementwiseChain,
    LogisticMixture,
    Logit,
    Mask,
    Multiscale,
    NormalizedConv1x1,
    Squeeze,
)
from arflows.core.conditioners import GatedResidualCNN
from arflows.core.dequantization import Dequantizer, UniformDequantizer, VariationalDequantizer
from arflows.core.runtime.errors import UserError
from arflows.vision.image_flow import ImageFlow, framed_size, image_spec

_NOISE_COUPLINGS = 4
_MOST_NOISE_BLOCKS = 2
_FEATURES = 32
_FEATURE_BLOCKS = 3


class FlowPlusPlus(ImageFlow):
    """Flow++: couplings by mixtures of logistics with self-attention, and variational dequantisation.

    Ho, Chen, Srinivas, Duan & Abbeel, "Flow++: improving flow-based generative models with variational dequantization
    and architecture design", 2019 (arXiv:1902.00275); the layout is that of the authors' published code for CIFAR-10:
    four couplings between columns, a squeeze, two between channels, three between columns, each after activation
    normalisation and an invertible 1×1 convolution, and no variables leave on the way. A coupling maps x to
    logit(Σ_k π_k σ((x − μ_k) · exp(−s_k))) · exp(a) + b, its parameters from gated convolutions and self-attention.
    The noise of dequantisation comes from four such couplings, of at most two blocks, that see the image. Pixels x of
    [0, 1] enter as logit(α + (1 − 2α) x), α = 0.05. Call `initialize` with a batch of data before training.

    Other than there, activation normalisation has one scale for each channel rather than for each channel and pixel,
    and the noise starts from uniform rather than normal noise, without normalisation or 1×1 convolutions.

    Args:
        image_size: height and width, or one number for both.
        channels: 1 for grey images, 3 for colour.
        blocks: gated residual blocks of each coupling's network.
        width: channels of the networks.
        components: logistics K in a mixture.
        heads: heads of the self-attention; 0 for convolutions alone.
        dropout: share of hidden features dropped while training.
        dequantization: "variational", or "uniform" for uniform noise.
        classes: number or names of the classes of a class-conditional model; 0 for an unconditional one.
        bits: bits of a pixel value, 1 to 16.

    Raises:
        UserError: if the images are too small, or ``heads`` does not divide ``width``.

    >>> flow = FlowPlusPlus(image_size=4, channels=1, blocks=1, width=4, heads=2, components=2).eval()
    >>> flow.sample(2).shape
    torch.Size([2, 1, 4, 4])
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 32,
        channels: int = 3,
        blocks: int = 10,
        width: int = 96,
        components: int = 32,
        heads: int = 4,
        dropout: float = 0.2,
        dequantization: Literal["uniform", "variational"] = "variational",
        classes: int | Sequence[str] = 0,
        bits: int = 8,
    ) -> None:
        spec = image_spec(image_size, channels, bits)
        if min(spec.height, spec.width) < 3:
            raise UserError(f"Flow++ needs images of at least 3×3 pixels, got {spec.height}×{spec.width}")
        if heads and width % heads:
            raise UserError(f"heads={heads} does not divide width={width}: choose a width that is a multiple of heads")
        height, columns = padded = framed_size(spec, halvings=2, setting="scales")
        context_features = min(width, 64) if classes else 0

        def coupling(mask: Mask, space: tuple[int, int], blocks: int, context_features: int) -> Coupling:
            elementwise = ElementwiseChain(LogisticMixture(components, spread=1.0), Affine(bound=1.0))
            outputs = elementwise.parameter_count * mask.changed_channels
            network = GatedResidualCNN(
                mask.input_channels, outputs, width, blocks, context_features, heads, space, dropout
            )
            return Coupling(mask, elementwise, network)

        def steps(masks: Sequence[Mask], space: tuple[int, int]) -> list[Bijection]:
            return [
                part
                for mask in masks
                for part in (NormalizedConv1x1(mask.channels), coupling(mask, space, blocks, context_features))
            ]

        def between_columns(count: int, channels: int, space: tuple[int, int]) -> list[Bijection]:
            masks = [ColumnMask(channels, swap=bool(i % 2)) for i in range(count)]
            return steps(masks, (space[0], space[1] // 2))

        half = (height // 2, columns // 2)
        bijection = Chain(
            Logit(0.05),
            *between_columns(4, channels, padded),
            Squeeze(),
            *steps([ChannelMask(4 * channels, swap=swap) for swap in (False, True)], half),
            *between_columns(3, 4 * channels, half),
        )
        variables = (channels * height * columns,)
        base = DiagonalNormal(variables, context_features) if classes else StandardNormal(variables)

        dequantizer: Dequantizer = UniformDequantizer(spec.levels)
        if dequantization == "variational":
            masks = [ColumnMask(channels, swap=bool(i % 2)) for i in range(_NOISE_COUPLINGS)]
            noise_blocks = min(blocks, _MOST_NOISE_BLOCKS)
            noise = [coupling(mask, (height, columns // 2), noise_blocks, _FEATURES) for mask in masks]
            features = GatedResidualCNN(2 * channels, _FEATURES, _FEATURES, _FEATURE_BLOCKS, dropout=dropout)
            dequantizer = VariationalDequantizer(Chain(*noise), nn.Sequential(_ColumnPairs(), features), spec.levels)
        flat = Multiscale([bijection], (channels, *padded))
        super().__init__(spec, flat, base, padded, classes, context_features, dequantizer)


class _ColumnPairs(nn.Module):
    """Every two columns as channels of one, so that an image has the shape of one half of a `ColumnMask`."""

    def forward(
        self, pixels: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch paired height half_width"]:
        """Pixels of [0, 1] → pairs of [−½, ½]."""
        return torch.cat((pixels - 0.5).unflatten(-1, (-1, 2)).unbind(-1), 1)
