import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from arflows.data.images import SkippedImage, convert, open_image


def gradient(height=40, width=40):
    """A colour image without symmetry."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], -1).astype(np.uint8)


def through_file(image, kind="PNG", **options):
    """Save an image and open it again, as a user's file comes in."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def png(width, height, depth, colour, rows):
    """A PNG of a kind that Pillow does not write, such as 16-bit colour."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


class TestModes:
    def test_target_size_is_untouched(self):
        pixels = gradient()
        for image in (pixels, through_file(Image.fromarray(pixels))):
            converted, steps = convert(image, 40, 3)
            np.testing.assert_array_equal(converted, pixels)
            assert steps == []

    def test_palette(self):
        image = Image.fromarray(gradient()).quantize(16)
        converted, steps = convert(through_file(image), 40, 3)
        np.testing.assert_array_equal(converted, np.asarray(image.convert("RGB")))
        assert steps == ["mode P to RGB"]

    def test_palette_with_transparent_entry(self):
        image = Image.new("P", (8, 8), 0)
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.paste(1, (4, 0, 8, 8))
        converted, steps = convert(through_file(image, transparency=0), 8, 3)
        assert (converted[:, :4] == 255).all()
        assert (converted[:, 4:] == [0, 0, 255]).all()
        assert steps == ["alpha over white"]

    def test_alpha_is_composited_over_white(self):
        image = Image.new("RGBA", (8, 8), (200, 0, 100, 128))
        converted, steps = convert(through_file(image), 8, 3)
        expected = np.array([200, 0, 100]) * 128 / 255 + 255 * 127 / 255
        assert np.abs(converted - expected).max() <= 1
        assert steps == ["alpha over white"]

    def test_grey_alpha_stays_grey(self):
        converted, steps = convert(through_file(Image.new("LA", (8, 8), (0, 0))), 8, 1)
        assert converted.shape == (8, 8, 1)
        assert (converted == 255).all()
        assert steps == ["alpha over white"]

    def test_transparent_colour_key(self):
        image = Image.new("RGB", (8, 8), (1, 2, 3))
        assert (convert(through_file(image, transparency=(1, 2, 3)), 8, 3)[0] == 255).all()

    def test_16_bit_grey(self):
        values = np.array([[0, 65535], [257, 32896]], np.uint16)
        for kind in ("PNG", "TIFF"):
            converted, steps = convert(through_file(Image.fromarray(values), kind), 2, 1)
            np.testing.assert_array_equal(converted[..., 0], [[0, 255], [1, 128]])
            assert steps == ["16 bits to 8"]

    def test_16_bit_colour(self):
        row = struct.pack(">6H", 0, 65535, 257 * 7, 257 * 200, 0, 65535)
        converted, _ = convert(Image.open(io.BytesIO(png(2, 2, 16, 2, [row, row]))), 2, 3)
        np.testing.assert_array_equal(converted[0], [[0, 255, 7], [200, 0, 255]])

    def test_one_bit(self):
        image = Image.fromarray(np.eye(8, dtype=bool))
        np.testing.assert_array_equal(convert(through_file(image), 8, 1)[0][..., 0], np.eye(8) * 255)

    def test_cmyk(self):
        image = Image.fromarray(np.full((8, 8, 3), (10, 200, 60), np.uint8)).convert("CMYK")
        converted, steps = convert(through_file(image, "TIFF"), 8, 3)
        assert (converted == [10, 200, 60]).all()
        assert steps == ["mode CMYK to RGB"]

    def test_grey_to_colour_and_back(self):
        grey = gradient()[..., :1]
        colour, steps = convert(grey, 40, 3)
        assert (colour == grey).all()
        assert steps == ["grey to colour"]
        back, steps = convert(colour, 40, 1)
        np.testing.assert_array_equal(back, grey)
        assert steps == ["colour to grey"]

    @pytest.mark.parametrize("values", [np.ones((4, 4), np.float32), np.full((4, 4), 70_000, np.int32)])
    def test_no_agreed_white_level(self, values):
        with pytest.raises(SkippedImage, match="white level"):
            convert(through_file(Image.fromarray(values), "TIFF"), 4, 1)


class TestGeometry:
    def test_turned_upright(self):
        pixels = gradient()
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned a quarter clockwise
        converted, steps = convert(through_file(Image.fromarray(pixels), exif=exif), 40, 3)
        np.testing.assert_array_equal(converted, np.rot90(pixels, -1))
        assert steps == ["turned upright"]

    def test_first_frame(self):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
        for kind in ("GIF", "WEBP", "TIFF", "PNG"):
            image = through_file(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
            image.seek(1)
            converted, steps = convert(image, 8, 3)
            assert (converted == [255, 0, 0]).all(), kind
            assert "first of several frames" in steps

    @pytest.mark.parametrize("shape", [(40, 60), (60, 40), (41, 60)])
    def test_central_square(self, shape):
        pixels = gradient(*shape)
        side = min(shape)
        converted, steps = convert(pixels, side, 3)
        top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
        np.testing.assert_array_equal(converted, pixels[top : top + side, left : left + side])
        assert steps == ["cropped to its central square"]

    def test_reduced_by_area_average(self):
        pixels = gradient()
        converted, steps = convert(pixels, 10, 3)
        expected = pixels.reshape(10, 4, 10, 4, 3).mean((1, 3))
        assert np.abs(converted - expected).max() <= 1
        assert steps == ["reduced"]

    def test_given_crop_comes_first(self):
        pixels = gradient(50, 60)
        converted, steps = convert(Image.fromarray(pixels), 20, 3, crop=(5, 10, 25, 30))
        np.testing.assert_array_equal(converted, pixels[10:30, 5:25])
        assert steps == ["cropped"]
        with pytest.raises(SkippedImage, match="smaller than the crop"):
            convert(Image.fromarray(pixels), 20, 3, crop=(5, 10, 65, 70))

    def test_never_enlarged(self):
        for image in (gradient(40, 30), Image.fromarray(gradient(30, 40))):
            with pytest.raises(SkippedImage, match="smaller than 32×32"):
                convert(image, 32, 3)


class TestBrokenFiles:
    def test_not_an_image(self, tmp_path):
        (tmp_path / "notes.txt").write_text("no image")
        with pytest.raises(SkippedImage, match="not an image"):
            open_image(tmp_path / "notes.txt")

    def test_missing(self, tmp_path):
        with pytest.raises(SkippedImage, match="unreadable"):
            open_image(tmp_path / "gone.png")

    def test_postscript_is_not_executed(self, tmp_path):
        (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
        with pytest.raises(SkippedImage, match="not an image"):
            open_image(tmp_path / "a.eps")

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
    def test_damaged_anywhere(self, tmp_path, kind):
        """Cut short or with noise in it, a file gives an image or a reason, never another error."""
        buffer = io.BytesIO()
        Image.fromarray(gradient()).save(buffer, kind)
        content = buffer.getvalue()
        generator = np.random.default_rng(0)
        skipped = 0
        for trial in range(60):
            damaged = bytearray(content[: generator.integers(1, len(content))] if trial % 2 else content)
            for position in generator.integers(0, len(damaged), 8):
                damaged[position] = generator.integers(256)
            path = tmp_path / "damaged"
            path.write_bytes(damaged)
            try:
                pixels, _ = convert(open_image(path), 16, 3)
                assert pixels.shape == (16, 16, 3)
            except SkippedImage:
                skipped += 1
        assert skipped > 0

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    @pytest.mark.parametrize("side", [12_000, 60_000])
    def test_decompression_bomb(self, tmp_path, side):
        (tmp_path / "bomb.png").write_bytes(png(side, side, 8, 0, [b"\0"]))
        with pytest.raises(SkippedImage, match="too many pixels"):
            open_image(tmp_path / "bomb.png")
