"""Which part of an example a coupling keeps, and which it changes."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Mask(nn.Module, ABC):
    """Splits an example into a kept part, which the conditioner sees, and a part that changes.

    Attributes:
        channels: channels of the example.
        input_channels: channels of `conditioner_input`.
        changed_channels: channels of the part that changes.
    """

    channels: int
    input_channels: int
    changed_channels: int

    @abstractmethod
    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The kept part and the part that changes."""

    @abstractmethod
    def merge(self, kept: Tensor, changed: Tensor) -> Tensor:
        """Puts the two parts together again."""

    def conditioner_input(self, kept: Tensor) -> Tensor:
        """What the conditioner sees of the kept part."""
        return kept

    def only_changed(self, log_derivative: Tensor) -> Tensor:
        """Zeroes per-element log-derivatives where nothing changes."""
        return log_derivative


class ChannelMask(Mask):
    """Keeps one half of the channels (of the features, for vectors) and changes the other.

    Args:
        channels: number of channels; of an odd number the larger half is kept.
        swap: keep the last half and change the first, rather than the other way round.
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
        """The kept and the changed half."""
        if self.swap:
            changed, kept = x.split([self.changed_channels, self.input_channels], 1)
        else:
            kept, changed = x.split([self.input_channels, self.changed_channels], 1)
        return kept, changed

    def merge(self, kept: Tensor, changed: Tensor) -> Tensor:
        """Both halves in their places."""
        return torch.cat([changed, kept] if self.swap else [kept, changed], 1)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"kept={self.input_channels}, changed={self.changed_channels}, swap={self.swap}"


class ColumnMask(Mask):
    """Keeps every other column of an image and changes those between.

    What Flow++ (Ho et al. 2019, arXiv:1902.00275) calls a checkerboard in its published code. Both parts are images of
    half the width, so the conditioner has half the pixels of a `CheckerboardMask`'s to work on.

    Args:
        channels: number of channels; the width of the images must be even.
        swap: keep the odd columns rather than the even ones, counted from zero.
    """

    def __init__(self, channels: int, swap: bool = False) -> None:
        super().__init__()
        self.swap = swap
        self.channels = self.input_channels = self.changed_channels = channels

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The kept and the changed columns, each next to each other."""
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        return (odd, even) if self.swap else (even, odd)

    def merge(self, kept: Tensor, changed: Tensor) -> Tensor:
        """Both kinds of columns in turn."""
        return torch.stack([changed, kept] if self.swap else [kept, changed], -1).flatten(-2)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"channels={self.channels}, swap={self.swap}"


class CheckerboardMask(Mask):
    """Keeps the pixels of one colour of a checkerboard and changes those of the other.

    Dinh et al. 2017 (arXiv:1605.08803), section 3.4, figure 3. Both parts stay at full size with zeros in the other's
    places. The conditioner also sees the mask itself, as one more channel.

    Args:
        channels: number of channels.
        height: rows of the image.
        width: columns of the image.
        swap: keep the pixels with an odd sum of row and column rather than the even ones.
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
        """Both colours, each with zeros where the other is."""
        kept_pixels = self.kept_pixels.to(x.dtype)
        kept = x * kept_pixels
        return kept, x - kept

    def merge(self, kept: Tensor, changed: Tensor) -> Tensor:
        """Each pixel from the part that its colour belongs to."""
        return torch.where(self.kept_pixels, kept, changed)

    def conditioner_input(self, kept: Tensor) -> Tensor:
        """The kept pixels, and the mask as a channel of zeros and ones."""
        batch, _, height, width = kept.shape
        mask = self.kept_pixels.to(kept.dtype).expand(batch, 1, height, width)
        return torch.cat([kept, mask], 1)

    def only_changed(self, log_derivative: Tensor) -> Tensor:
        """Zero at the kept pixels."""
        return log_derivative.masked_fill(self.kept_pixels, 0)
