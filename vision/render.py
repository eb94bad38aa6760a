"""Pictures: grids of images, and image files."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from arflows.core.runtime.files import replacing

SMALLEST = 32
"""Height or width in pixels below which images of a grid are enlarged."""


def grid(
    images: Integer[Tensor, "count channels height width"], columns: int | None = None, bits: int = 8
) -> UInt8[Tensor, "3 rows columns"]:
    """Lays images out in rows, with two black pixels between them; enlarges those below 32 pixels by a whole factor.

    Args:
        images: The images, grey or colour.
        columns: Images in a row; as many as make the grid about square if None.
        bits: Bits of a pixel value.

    Returns:
        One colour image of 8 bits.

    >>> grid(torch.zeros(4, 1, 32, 40, dtype=torch.uint8)).shape
    torch.Size([3, 70, 86])
    """
    if bits != 8:
        images = (images.long() * 255 // ((1 << bits) - 1)).to(torch.uint8)
    columns = columns or max(1, round(len(images) ** 0.5))
    factor = -(-SMALLEST // min(images.shape[-2:]))
    enlarged = images.cpu().repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return make_grid(enlarged, nrow=columns, padding=2)


def save_png(image: Integer[Tensor, "channels height width"], path: Path, bits: int = 8) -> None:
    """Writes an image, grey or colour; the file is written whole or not at all.

    Grey images of more than 8 bits are written as they are, in 16 bits. Pillow writes colour in 8 bits only, so
    colour images are scaled to 8 bits, like images of fewer bits.

    Args:
        image: The image.
        path: The file.
        bits: Bits of a pixel value.

    Raises:
        OSError: If it cannot be written.
    """
    pixels = image.cpu().numpy()
    if bits > 8 and len(pixels) == 1:
        pixels = pixels.astype(np.uint16)
    elif bits != 8:
        pixels = (pixels.astype(np.int64) * 255 // ((1 << bits) - 1)).astype(np.uint8)
    pixels = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    with replacing(path, durable=False) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")
