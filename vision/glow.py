"""Glow for images."""

from collections.abc import Callable, Sequence

from torch import nn

from arflows.core.bases import DiagonalNormal
from arflows.core.bijections import (
    Affine,
    Bijection,
    Chain,
    ChannelMask,
    Coupling,
    Multiscale,
    NormalizedConv1x1,
    Squeeze,
)
from arflows.core.conditioners import ShallowCNN, ZeroConv
from arflows.vision.image_flow import ImageFlow, framed_size, image_spec


class Glow(ImageFlow):
    """Glow: activation normalisation, invertible 1×1 convolutions and affine couplings.

    Kingma & Dhariwal, "Glow: generative flow with invertible 1×1 convolutions", 2018 (arXiv:1807.03039). Each level
    squeezes, takes ``steps`` steps of flow, and lets half of the variables leave under a prior that depends on the half
    that stays. Log-scales of couplings are bounded by 3. Call `initialize` with a batch of data before training.

    Args:
        image_size: height and width, or one number for both.
        channels: 1 for grey images, 3 for colour.
        levels: number of levels L, each at half the size of the one before.
        steps: steps of flow K at each level.
        width: hidden channels of the couplings' networks.
        classes: number or names of the classes of a class-conditional model; 0 for an unconditional one.
        bits: bits of a pixel value, 1 to 16.

    Raises:
        UserError: if the images are too small for ``levels``.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 32,
        channels: int = 3,
        levels: int = 3,
        steps: int = 32,
        width: int = 512,
        classes: int | Sequence[str] = 0,
        bits: int = 8,
    ) -> None:
        spec = image_spec(image_size, channels, bits)
        padded = framed_size(spec, halvings=levels, setting="levels")
        context_features = min(width, 64) if classes else 0

        def affine_coupling(channels: int, network: Callable[[int, int], nn.Module]) -> Coupling:
            mask = ChannelMask(channels)
            return Coupling(
                mask, Affine(bound=3.0), network(mask.input_channels, Affine.parameter_count * mask.changed_channels)
            )

        def step(channels: int) -> list[Bijection]:
            coupling = affine_coupling(channels, lambda i, o: ShallowCNN(i, o, width, context_features))
            return [NormalizedConv1x1(channels), coupling]

        parts: list[Bijection] = []
        for level in range(levels):
            squeezed = channels << (level + 2)
            steps_of_level = [part for _ in range(steps) for part in step(squeezed)]
            split_prior = affine_coupling(squeezed, lambda i, o: ZeroConv(i, o, context_features))
            parts.append(Chain(Squeeze(), *steps_of_level, *([split_prior] if level < levels - 1 else [])))

        bijection = Multiscale(parts, (channels, *padded))
        base = DiagonalNormal((channels * padded[0] * padded[1],), context_features)
        super().__init__(spec, bijection, base, padded, classes, context_features)
