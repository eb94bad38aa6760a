"""Images as tensors of integers (channels, height, width), and the settings that data and model share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from arflows.core.runtime.errors import UserError
from arflows.data.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ImageSpec(Spec):
    """The settings that data and model must share.

    Attributes:
        height: Rows of pixels.
        width: Columns of pixels.
        channels: 1 for grey, 3 for colour.
        bits: Bits of each pixel and channel: the values are 0 … 2^bits - 1.

    >>> spec = ImageSpec(height=12, width=20, channels=1, bits=12)
    >>> spec.dims, spec.shape, spec.levels
    (240, (1, 12, 20), 4096)
    >>> spec.differences(ImageSpec(12, 12, 1))
    ['width 20 ≠ 12', 'bits 12 ≠ 8']
    """

    height: int
    width: int
    channels: int
    bits: int = 8

    @property
    def levels(self) -> int:
        """Number of values of a pixel."""
        return 1 << self.bits

    @property
    def dims(self) -> int:
        """Numbers in one image."""
        return self.height * self.width * self.channels

    @property
    def options(self) -> str:
        """Options of ``prepare`` that make images of this size and these channels."""
        size = f"{self.height}" if self.height == self.width else f"{self.height},{self.width}"
        return f"--image_size {size} --channels {self.channels}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: channels, height, width."""
        return self.channels, self.height, self.width

    def check(self, images: Tensor) -> None:
        """Make sure that a tensor holds images of this kind, (batch, channels, height, width).

        Pixels are uint8; of more than 8 bits they are integers of any wider type.

        Raises:
            UserError: It does not; the sentence names what differs and the remedy.
        """
        import torch

        wide = (torch.int16, torch.uint16, torch.int32, torch.int64)
        fits = images.dtype == torch.uint8 if self.bits <= 8 else images.dtype in wide
        if fits and images.shape[1:] == self.shape:
            self._check_levels(images)
            return  # at once: this also runs inside compiled graphs
        if not fits:
            raise UserError(_wrong_type(images, self.bits))
        if images.ndim != 4:
            raise UserError(
                f"images have shape {tuple(images.shape)}: give four axes (batch, channels, height, width); for one "
                "image use images[None]."
            )
        _, channels, height, width = images.shape
        given = ImageSpec(height, width, channels, self.bits)
        if differences := self.differences(given):
            hint = " (the channels come second, before height and width)" if width == self.channels else ""
            raise UserError(
                f"the images do not fit the model, model ≠ images: {', '.join(differences)}{hint}; prepare the images "
                f"with {self.options}, or use a model trained on their kind."
            )

    def _check_levels(self, images: Tensor) -> None:
        """Refuse values beyond the bits, where looking at them neither stops a GPU nor breaks a compiled graph."""
        import torch

        if self.bits in (8, 16) and images.dtype in (torch.uint8, torch.uint16):
            return
        if torch.compiler.is_compiling() or images.device.type != "cpu" or not images.numel():
            return
        lowest, highest = images.long().aminmax()
        if lowest < 0 or highest >= self.levels:
            raise UserError(
                f"the pixels run from {lowest} to {highest}, outside 0…{self.levels - 1} of {self.bits} bits: scale "
                "the images, or use a model of more bits."
            )


def _wrong_type(images: Tensor, bits: int) -> str:
    """Say what to do about images that are of another type than the model's."""
    import torch

    values = images.detach()
    if bits > 8:
        return f"the images are {images.dtype}, the model takes {bits} bits: give torch.int32 in 0…{(1 << bits) - 1}."
    if values.is_floating_point():
        if bad := int((~torch.isfinite(values)).sum()):
            return f"{bad:,} of {values.numel():,} pixels are NaN or infinite: correct or leave out these images."
        if values.numel() and values.min() >= 0 and values.max() <= 1:
            return f"the images are {images.dtype} in 0…1: give whole numbers, (255 * images).round().to(torch.uint8)."
    if values.is_complex() or not values.numel():
        return f"the images are {images.dtype}: give torch.uint8."
    lowest, highest = values.min().item(), values.max().item()
    if lowest >= 0 and highest <= 255:
        return f"the images are {images.dtype}: give torch.uint8, images.to(torch.uint8)."
    return f"the pixels run from {lowest:g} to {highest:g}, outside 0…255: give torch.uint8 in that range."
