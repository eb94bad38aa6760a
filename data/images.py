"""Conversion of images of any kind to 8-bit pixels of one size and one number of channels.

The conversion, in order:

1. The first frame of an animation or multi-page file is taken.
2. The image is turned upright as its EXIF orientation says.
3. 16-bit greys are scaled to 8 bits (value × 255 / white, rounded), where white is 65535 unless another level is
   given, as for 12 bits in files of 16; of 16-bit colour Pillow keeps the upper 8 bits.
4. Transparency is composited over white; palettes, CMYK, YCbCr, Lab and HSV become RGB.
5. An image of the target size is left as it is. Any other is cropped to its largest central part of the target's
   proportions (a square for a square) and reduced by area averaging (Pillow's box filter). Images are never enlarged:
   one that is lower or narrower than the target is skipped.
6. Colour becomes grey by ITU-R 601 luma, grey becomes colour by three equal channels.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
# Raster formats alone: Pillow would hand EPS to Ghostscript, for example.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "AVIF", "JPEG2000")
EXIF_ORIENTATION = 0x0112
WHITE = 65535
"""Value of white in 16-bit greys."""


class SkippedImage(Exception):
    """An image cannot be used; the message is the reason, in words that images with the same reason share."""


def open_image(path: Path) -> Image.Image:
    """Open an image file, reading no more than its header.

    Raises:
        SkippedImage: The file is not an image, cannot be read, or claims more pixels than Pillow's safety limit
            (`PIL.Image.MAX_IMAGE_PIXELS`; a small file can claim gigabytes).
    """
    try:
        image = Image.open(path, formats=_known_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise SkippedImage("too many pixels") from None
    except Image.UnidentifiedImageError:
        raise SkippedImage("not an image") from None
    except OSError:
        raise SkippedImage("unreadable file") from None
    except Exception:  # a broken header makes decoders raise almost anything
        raise SkippedImage("broken or truncated") from None
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise SkippedImage("too many pixels")
    return image


def convert(
    image: Image.Image | UInt8[np.ndarray, "height width channels"],
    size: int | tuple[int, int],
    channels: int,
    crop: tuple[int, int, int, int] | None = None,
    white: int = WHITE,
) -> tuple[UInt8[np.ndarray, "height width channels"], list[str]]:
    """Convert one image as described at the top of this module.

    Args:
        image: An opened image, or its pixels.
        size: Height and width of the result, or one number for both.
        channels: 1 for grey, 3 for colour.
        crop: A part to take first: left, top, right, bottom in pixels of the upright image.
        white: Value of white in 16-bit greys; a brighter image is skipped.

    Returns:
        The pixels, and the names of the steps that changed something.

    Raises:
        SkippedImage: The image is smaller than the target, broken, or of a kind without an agreed white level.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if isinstance(image, np.ndarray):
        if image.shape == (height, width, channels) and crop is None:
            return image, []
        image = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    if crop is None and not _is_large_enough(image, height, width):  # known from the header: decode nothing in vain
        raise SkippedImage(f"smaller than {height}×{width}")
    try:
        image, steps = _flatten(image, white)
    except SkippedImage:
        raise
    except Exception:  # decoders of broken files raise almost anything
        raise SkippedImage("broken or truncated") from None
    if crop is not None:
        if crop[2] > image.width or crop[3] > image.height:
            raise SkippedImage("smaller than the crop")
        image = image.crop(crop)
        steps.append("cropped")
    if image.size != (width, height):
        if image.width < width or image.height < height:
            raise SkippedImage(f"smaller than {height}×{width}")
        scale = min(image.width / width, image.height / height)
        part = round(width * scale), round(height * scale)
        if part != image.size:
            left, top = (image.width - part[0]) // 2, (image.height - part[1]) // 2
            image = image.crop((left, top, left + part[0], top + part[1]))
            steps.append("cropped to its central square" if width == height else "cropped to its central part")
        if part != (width, height):
            image = image.resize((width, height), Image.Resampling.BOX)
            steps.append("reduced")
    mode = {1: "L", 3: "RGB"}[channels]
    if image.mode != mode:
        image = image.convert(mode)
        steps.append("colour to grey" if channels == 1 else "grey to colour")
    return np.asarray(image).reshape(height, width, channels), steps


@functools.cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF is not in every build of Pillow


def _is_large_enough(image: Image.Image, height: int, width: int) -> bool:
    """Return False if an image is too small, whichever way its EXIF orientation turns it."""
    if height == width:
        return min(image.size) >= width
    return min(image.size) >= min(height, width) and max(image.size) >= max(height, width)


def _flatten(image: Image.Image, white: int) -> tuple[Image.Image, list[str]]:
    """Decode an image to mode L or RGB, upright, of its own size; return it with the steps that changed something."""
    steps = []
    if getattr(image, "is_animated", False):
        image.seek(0)
        steps.append("first of several frames")
    image.load()
    if image.mode == "F":
        raise SkippedImage("floating-point pixels without an agreed white level")
    if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
        steps.append("turned upright")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > WHITE:
            raise SkippedImage("32-bit pixels without an agreed white level")
        if values.max() > white:
            raise SkippedImage(f"brighter than the white level {white}")
        image = Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))
        steps.append("16 bits to 8")
    grey = image.mode in GREY_MODES
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        steps.append("alpha over white")
    elif image.mode not in ("L", "RGB"):
        steps.append(f"mode {image.mode} to {'L' if grey else 'RGB'}")
    return image.convert("L" if grey else "RGB"), steps
