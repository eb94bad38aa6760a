"""Multiscale flows for images: RealNVP and Glow."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from arflows.core.bases import Base, DiagonalNormal, StandardNormal
from arflows.core.bijections import (
    Affine,
    BatchNorm,
    Bijection,
    Chain,
    ChannelMask,
    CheckerboardMask,
    Coupling,
    Logit,
    Mask,
    Multiscale,
    NormalizedConv1x1,
    Permutation,
    Squeeze,
    TanhAffine,
)
from arflows.core.conditioners import ResidualCNN, ShallowCNN, ZeroConv
from arflows.core.dequantization import UniformDequantizer
from arflows.core.errors import UserError
from arflows.core.flow import Flow
from arflows.core.pretrained import Pretrained
from arflows.vision.representation import ImageSpec

PIXEL_LEVELS = 256


class ImageFlow(Flow, Pretrained):
    """A flow over 8-bit images, padded where its scales need a larger size.

    Pixels are dequantised uniformly, so `log_prob` is a lower bound of the log-probability of the discrete image. Where
    the image is smaller than ``padded_size`` the model is one of the image within a frame of zeros; the probability of
    image and frame together is a lower bound of that of the image, and bits per dimension count the image's own pixels.

    Args:
        spec: the images' size and channels.
        bijection: from pixels in [0, 1], (channels, *padded_size), to a latent vector.
        base: density of the latent vector.
        padded_size: height and width that the bijection takes.
        classes: number of classes of a class-conditional model; 0 for an unconditional one.
        context_features: size of the class embedding that the bijection takes as its context.
    """

    def __init__(
        self,
        spec: ImageSpec,
        bijection: Bijection,
        base: Base,
        padded_size: tuple[int, int],
        classes: int = 0,
        context_features: int = 0,
    ) -> None:
        embedding = nn.Embedding(classes, context_features) if classes else None
        super().__init__(base, bijection, FramedDequantizer(spec, padded_size), embedding)
        self.spec = spec
        self.classes = classes

    @classmethod
    def _named(cls, name: str, folder: Path) -> type[Self]:
        """A model by the name of its class, which is known once it is imported."""
        import arflows.vision.tarflow  # noqa: F401 (here, for it imports this module)

        return super()._named(name, folder)

    @property
    def dims(self) -> int:
        """Number of pixel values of an image, without padding."""
        return self.spec.dims

    def log_prob(
        self, images: UInt8[Tensor, "batch channels height width"], labels: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Lower bound of the log-probability of each discrete image, in nats, with new noise at every call.

        Args:
            images: 8-bit images.
            labels: their classes, for a class-conditional model.

        Raises:
            UserError: if the images' size, channels or type are not the model's, or labels are missing or superfluous.
        """
        self.spec.check(images)
        self._check_labels(labels, len(images))
        return super().log_prob(images, labels)

    def encode(
        self, images: UInt8[Tensor, "batch channels height width"], labels: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch latent"]:
        """Images → latent vectors, from the middles of the pixels' cells."""
        self.spec.check(images)
        self._check_labels(labels, len(images))
        return super().encode(images, labels)

    def decode(
        self, z: Float[Tensor, "batch latent"], labels: Int[Tensor, " batch"] | None = None
    ) -> UInt8[Tensor, "batch channels height width"]:
        """Latent vectors → images."""
        self._check_labels(labels, len(z))
        return super().decode(z, labels)

    def sample(
        self,
        count: int,
        labels: Int[Tensor, " count"] | int | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> UInt8[Tensor, "count channels height width"]:
        """Draws images.

        Args:
            count: how many.
            labels: a class for each image or one for all; a class-conditional model without labels draws them evenly.
            temperature: multiplies the standard deviation of the latents.
            generator: source of randomness; a CPU generator gives the same latents on every device.
        """
        return super().sample(
            count, self.labels_for(count, labels, generator), temperature=temperature, generator=generator
        )

    def sample_with_log_prob(
        self,
        count: int,
        labels: Int[Tensor, " count"] | int | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> tuple[UInt8[Tensor, "count channels height width"], Float[Tensor, " count"]]:
        """Draws images and gives what `log_prob` says of each; see `sample`."""
        return super().sample_with_log_prob(
            count, self.labels_for(count, labels, generator), temperature=temperature, generator=generator
        )

    def labels_for(
        self, count: int, labels: Int[Tensor, " count"] | int | None, generator: torch.Generator | None = None
    ) -> Int[Tensor, " count"] | None:
        """One class for each of ``count`` images: those given, one for all, or drawn evenly; None if unconditional."""
        if isinstance(labels, int):
            labels = torch.full((count,), labels)
        elif labels is None and self.classes:
            labels = torch.randint(self.classes, (count,), generator=generator)
        if labels is None:
            return None
        self._check_labels(labels, count)
        if int(labels.min()) < 0 or int(labels.max()) >= self.classes:
            raise UserError(f"labels must lie between 0 and {self.classes - 1}, got {sorted(set(labels.tolist()))}")
        return labels.to(self.base.origin.device)

    def _check_labels(self, labels: Tensor | None, count: int) -> None:
        if self.classes and labels is None:
            raise UserError(f"this model is conditional on {self.classes} classes: give a label for each image")
        if labels is not None and not self.classes:
            raise UserError("this model was trained without classes: leave the labels out")
        if labels is not None and labels.shape != (count,):
            raise UserError(f"expected one label for each of {count} images, got shape {tuple(labels.shape)}")


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
        classes: number of classes of a class-conditional model; 0 for an unconditional one.

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
        classes: int = 0,
    ) -> None:
        spec = image_spec(image_size, channels)
        if scales is None:
            scales = _scales_down_to(min(spec.height, spec.width), smallest=4)
        # One halving between scales, and one more so that the last checkerboard has an even size.
        padded = _padded_size(spec, halvings=scales, setting="scales")
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
        classes: number of classes of a class-conditional model; 0 for an unconditional one.

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
        classes: int = 0,
    ) -> None:
        spec = image_spec(image_size, channels)
        padded = _padded_size(spec, halvings=levels, setting="levels")
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


class FramedDequantizer(UniformDequantizer):
    """Uniform dequantisation of images within a frame of zeros, which `quantize` cuts off again."""

    def __init__(self, spec: ImageSpec, padded_size: tuple[int, int]) -> None:
        super().__init__(PIXEL_LEVELS)
        rows, columns = padded_size[0] - spec.height, padded_size[1] - spec.width
        self.top, self.left = rows // 2, columns // 2
        self.height, self.width = spec.height, spec.width
        self.frame = (self.left, columns - self.left, self.top, rows - self.top)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, float]:
        """Frames and dequantises."""
        return super().forward(self._framed(x), generator)

    def midpoint(self, x: Tensor) -> Tensor:
        """Frames, and puts each pixel into the middle of its cell."""
        return super().midpoint(self._framed(x))

    def quantize(self, y: Tensor) -> Tensor:
        """Rounds down to integers, and cuts the frame off."""
        inner = y[..., self.top : self.top + self.height, self.left : self.left + self.width]
        return super().quantize(inner)

    def _framed(self, x: Tensor) -> Tensor:
        return F.pad(x, self.frame) if any(self.frame) else x


def image_spec(image_size: int | Sequence[int], channels: int) -> ImageSpec:
    """The spec of images of one size, given as a number or as (height, width)."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return ImageSpec(height, width, channels)


def _diagonals_first(channels: int) -> Int[Tensor, " channels"]:
    """Order of squeezed channels in which each half holds one diagonal of the 2×2 blocks of every channel.

    What stays after factoring out the second half is then spread evenly over the image.
    """
    offsets = torch.tensor([0, 3, 1, 2])
    return (offsets[:, None] + 4 * torch.arange(channels // 4)).flatten()


def _scales_down_to(size: int, smallest: int) -> int:
    scales = 1
    while size > smallest:
        size, scales = (size + 1) // 2, scales + 1
    return scales


def _padded_size(spec: ImageSpec, halvings: int, setting: str) -> tuple[int, int]:
    """The least size, no smaller than the image's, that can be halved ``halvings`` times.

    Raises:
        UserError: if the frame around the image would have to be as large as the image.
    """
    size = min(spec.height, spec.width)
    most = (2 * size - 1).bit_length() - 1
    if not 1 <= halvings <= most:
        mend = f"use 1 to {most}" if most else "use larger images"
        raise UserError(f"{setting}={halvings} does not fit images of {spec.height}×{spec.width} pixels: {mend}")
    unit = 1 << halvings
    return -(-spec.height // unit) * unit, -(-spec.width // unit) * unit
