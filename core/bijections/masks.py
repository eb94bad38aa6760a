"""Masks of couplings: the part of an example that is kept and the part that changes."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Mask(nn.Module, ABC):
    """Split of an example into a kept part, which the conditioner sees, and a changed part.

    Attributes:
        channels: number of channels of the example.
        input_channels: number of channels of `conditioner_input`.
        changed_channels: number of channels of the changed part.
    """

    channels: int
    input_channels: int
    changed_channels: int

    @abstractmethod
    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kept part and the changed part."""

    @abstractmethod
    def merge(self, kept: Tensor, changed: Tensor) -> Tensor:
        """Join the two parts; the inverse of `split`."""

    def conditioner_input(self, kept: Tensor) -> Tensor:
        """Return the input of the conditioner for a kept part."""
        return kept

    def only_changed(self, log_derivative: Tensor) -> Tensor:
        """Set elementwise log-derivatives to zero where nothing changes."""
        return log_derivative


class ChannelMask(Mask):
    """Mask that keeps the first half of the channels (of the features, for vectors) and changes the second.

    Args:
        channels: number of channels; the kept half of an odd number is the larger one.
        swap: keep the second half and change the first.

    Raises:
        ValueError: if there are fewer than 2 channels.

    >>> kept, changed = ChannelMask(3).split(torch.tensor([[1.0, 2.0, 3.0]]))
    >>> kept, changed
    (tensor([[1., 2.]]), tensor([[3.]]))
    """

    def __init__(self, channels: int, swap: bool = False) -> None:
        super().__init__()
        if channels < 2:
            raise ValueError(f"a channel mask needs at least 2 channels to split, got {channels}")
        self.swap = swap
        self.channels = channels
        self.changed_channels = channels // 2
        self.input_channels = channels - self.changed_channels

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kept half and the changed half."""
        if self.swap:
            changed, kept = x.split([self.changed_channels, self.input_channels], 1)
        else:
            kept, changed = x.split([self.input_channels, self.changed_channels], 1)
        return kept, changed

    def merge(self, kept: Tensor, changed: Tensor) -> Tensor:
        """Concatenate the halves in their original order."""
        return torch.cat([changed, kept] if self.swap else [kept, changed], 1)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"kept={self.input_channels}, changed={self.changed_channels}, swap={self.swap}"


class ColumnMask(Mask):
    """Mask that keeps the even columns of an image, counted from 0, and changes the odd ones.

    The published code of Flow++ (Ho et al. 2019, arXiv:1902.00275) calls it a checkerboard. Both parts are images of
    half the width, so a conditioner computes half the pixels that it would for a `CheckerboardMask`.

    Args:
        channels: number of channels; the width of the images must be even.
        swap: keep the odd columns and change the even ones.

    >>> kept, changed = ColumnMask(1).split(torch.arange(4.0).view(1, 1, 1, 4))
    >>> kept.flatten(), changed.flatten()
    (tensor([0., 2.]), tensor([1., 3.]))
    """

    def __init__(self, channels: int, swap: bool = False) -> None:
        super().__init__()
        self.swap = swap
        self.channels = self.input_channels = self.changed_channels = channels

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kept columns and the changed columns, each as an image."""
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        return (odd, even) if self.swap else (even, odd)

    def merge(self, kept: Tensor, changed: Tensor) -> Tensor:
        """Interleave the kept and the changed columns."""
        return torch.stack([changed, kept] if self.swap else [kept, changed], -1).flatten(-2)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"channels={self.channels}, swap={self.swap}"


class CheckerboardMask(Mask):
    """Mask that keeps the pixels of one colour of a checkerboard and changes those of the other.

    Dinh et al. 2017 (arXiv:1605.08803), section 3.4, figure 3. Both parts have the full size, with zeros at the pixels
    of the other part. The conditioner also sees the mask, as one more channel.

    Args:
        channels: number of channels.
        height: number of rows of the image.
        width: number of columns of the image.
        swap: keep the pixels whose row and column have an odd sum; otherwise those of an even sum.

    >>> kept, changed = CheckerboardMask(1, 2, 2).split(torch.ones(1, 1, 2, 2))
    >>> kept.flatten(), changed.flatten()
    (tensor([1., 0., 0., 1.]), tensor([0., 1., 1., 0.]))
    """

    kept_pixels: Tensor

    def __init__(self, channels: int, height: int, width: int, swap: bool = False) -> None:
        super().__init__()
        self.channels = channels
        self.input_channels = channels + 1
        self.changed_channels = channels
        odd = (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 1
        self.register_buffer("kept_pixels", odd if swap else ~odd, persistent=False)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both colours, each with zeros at the pixels of the other."""
        kept_pixels = self.kept_pixels.to(x.dtype)
        kept = x * kept_pixels
        return kept, x - kept

    def merge(self, kept: Tensor, changed: Tensor) -> Tensor:
        """Take each pixel from the part of its colour."""
        return torch.where(self.kept_pixels, kept, changed)

    def conditioner_input(self, kept: Tensor) -> Tensor:
        """Return the kept pixels, followed by the mask as a channel of zeros and ones."""
        batch, _, height, width = kept.shape
        mask = self.kept_pixels.to(kept.dtype).expand(batch, 1, height, width)
        return torch.cat([kept, mask], 1)

    def only_changed(self, log_derivative: Tensor) -> Tensor:
        """Set log-derivatives to zero at the kept pixels."""
        return log_derivative.masked_fill(self.kept_pixels, 0)
