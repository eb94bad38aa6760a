"""RealNVP for images."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from arflows.core.bases import DiagonalNormal, StandardNormal
from arflows.core.bijections import (
    BatchNorm,
    Bijection,
    Chain,
    ChannelMask,
    CheckerboardMask,
    Coupling,
    Logit,
    Mask,
    Multiscale,
    Permutation,
    Squeeze,
    TanhAffine,
)
from arflows.core.conditioners import ResidualCNN
from arflows.vision.image_flow import ImageFlow, framed_size, image_spec


class RealNVP(ImageFlow):
    """RealNVP: masked affine couplings with residual networks at several scales.

    Dinh, Sohl-Dickstein & Bengio, "Density estimation using Real NVP", 2017 (arXiv:1605.08803). At each scale three
    couplings with checkerboard masks, a squeeze, three couplings with channel masks, and half of the variables leave;
    four checkerboard couplings at the last. Couplings are followed by batch normalisation with running averages; the
    width of the networks doubles with each scale and with the squeeze inside one, as in the authors' published code.
    Pixels x of [0, 1] enter as logit(α + (1 − 2α) x), α = 0.05.

    Args:
        image_size: height and width, or one number for both.
        channels: 1 for grey images, 3 for colour.
        scales: number of scales; None halves the size until it is 4, as in the paper's ImageNet models.
        blocks: residual blocks of each coupling's network.
        width: channels of the networks at the first scale.
        classes: number or names of the classes of a class-conditional model; 0 for an unconditional one.
        bits: bits of a pixel value, 1 to 16.

    Raises:
        UserError: if the images are too small for ``scales``.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 32,
        channels: int = 3,
        scales: int | None = 2,
        blocks: int = 8,
        width: int = 64,
        classes: int | Sequence[str] = 0,
        bits: int = 8,
    ) -> None:
        spec = image_spec(image_size, channels, bits)
        if scales is None:
            scales = _scales_down_to(min(spec.height, spec.width), smallest=4)
        # One halving between scales, and one more so that the last checkerboard has an even size.
        padded = framed_size(spec, halvings=scales, setting="scales")
        context_features = width if classes else 0

        def couplings(masks: Sequence[Mask], width: int) -> list[Bijection]:
            parts: list[Bijection] = []
            for mask in masks:
                outputs = TanhAffine.parameter_count * mask.changed_channels
                network = ResidualCNN(mask.input_channels, outputs, width, blocks, context_features)
                parts += [Coupling(mask, TanhAffine(), network), BatchNorm(mask.channels)]
            return parts

        def checkerboards(count: int, scale: int) -> list[Bijection]:
            size = (channels << scale, padded[0] >> scale, padded[1] >> scale)
            return couplings([CheckerboardMask(*size, swap=bool(i % 2)) for i in range(count)], width << scale)

        def channelwise(count: int, scale: int) -> list[Bijection]:
            squeezed = channels << (scale + 2)
            return couplings([ChannelMask(squeezed, swap=bool(i % 2)) for i in range(count)], width << (scale + 1))

        levels = [
            Chain(
                *checkerboards(3, scale),
                Squeeze(),
                *channelwise(3, scale),
                Permutation(_diagonals_first(channels << (scale + 2))),
            )
            for scale in range(scales - 1)
        ]
        levels.append(Chain(*checkerboards(4, scales - 1)))

        bijection = Chain(Logit(0.05), Multiscale(levels, (channels, *padded)))
        variables = (channels * padded[0] * padded[1],)
        base = DiagonalNormal(variables, context_features) if classes else StandardNormal(variables)
        super().__init__(spec, bijection, base, padded, classes, context_features)


def _diagonals_first(channels: int) -> Int[Tensor, " channels"]:
    """Order of squeezed channels in which each half holds one diagonal of the 2×2 blocks of every channel.

    The pixels that remain after factoring out the second half are then spread evenly over the image.
    """
    offsets = torch.tensor([0, 3, 1, 2])
    return (offsets[:, None] + 4 * torch.arange(channels // 4)).flatten()


def _scales_down_to(size: int, smallest: int) -> int:
    scales = 1
    while size > smallest:
        size, scales = (size + 1) // 2, scales + 1
    return scales
