"""What a person looks at: grids of images."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from arflows.core.runtime.files import replacing

SMALLEST = 32
"""Height or width in pixels below which images of a grid are enlarged."""


def grid(
    images: UInt8[Tensor, "count channels height width"], columns: int | None = None
) -> UInt8[Tensor, "3 rows columns"]:
    """Lays images out in rows, with two black pixels between them; enlarges those below 32 pixels by a whole factor.

    Args:
        images: The images, grey or colour.
        columns: Images in a row; as many as make the grid about square if None.

    Returns:
        One colour image.
    """
    columns = columns or max(1, round(len(images) ** 0.5))
    factor = -(-SMALLEST // min(images.shape[-2:]))
    enlarged = images.cpu().repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return make_grid(enlarged, nrow=columns, padding=2)


def save_png(image: UInt8[Tensor, "channels height width"], path: Path) -> None:
    """Writes an image, grey or colour; the file is written whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    pixels = image.cpu().numpy()
    pixels = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    with replacing(path, durable=False) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")
