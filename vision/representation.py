"""What an image is to a model: integers in a tensor (channels, height, width), and the settings that make it so."""

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
    """

    height: int
    width: int
    channels: int
    bits: int = 8

    @property
    def dims(self) -> int:
        """Numbers in one image."""
        return self.height * self.width * self.channels

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: channels, height, width."""
        return self.channels, self.height, self.width

    @property
    def size_option(self) -> str:
        """Height and width as the option ``--image_size`` takes them."""
        return str(self.height) if self.height == self.width else f"{self.height},{self.width}"

    def check(self, images: Tensor) -> None:
        """Make sure that a tensor holds images of this kind: uint8 (batch, channels, height, width).

        Raises:
            UserError: It does not; the sentence names what differs and how to mend it.
        """
        import torch

        if images.dtype == torch.uint8 and images.shape[1:] == self.shape:
            return  # at once: this also runs inside compiled graphs
        if images.dtype != torch.uint8:
            raise UserError(_wrong_type(images))
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
                f"the images do not fit the model, model ≠ images: {', '.join(differences)}{hint}; prepare the "
                f"images with --image_size {self.size_option} --channels {self.channels}, or use a model trained on "
                "their kind."
            )


def _wrong_type(images: Tensor) -> str:
    """Say what to do about images that are not uint8."""
    import torch

    values = images.detach()
    if values.is_floating_point():
        if bad := int((~torch.isfinite(values)).sum()):
            return f"{bad:,} of {values.numel():,} pixels are NaN or infinite: mend or leave out these images."
        if values.numel() and values.min() >= 0 and values.max() <= 1:
            return f"the images are {images.dtype} in 0…1: give whole numbers, (255 * images).round().to(torch.uint8)."
    if values.is_complex() or not values.numel():
        return f"the images are {images.dtype}: give torch.uint8."
    lowest, highest = values.min().item(), values.max().item()
    if lowest >= 0 and highest <= 255:
        return f"the images are {images.dtype}: give torch.uint8, images.to(torch.uint8)."
    return f"the pixels run from {lowest:g} to {highest:g}, outside 0…255: give torch.uint8 in that range."
