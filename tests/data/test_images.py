import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pdfx.model.pictures import ImageError, decode_image, image_header


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_lossless_formats_give_back_the_pixels(kind):
    image = noise()
    decoded = decode_image(encode(image, kind, lossless=True))
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), np.asarray(image))


def test_the_exif_orientation_is_applied():
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    decoded = decode_image(encode(image, "PNG", exif=exif))
    assert decoded.size == (20, 40)
    assert decoded.getpixel((10, 5)) == (255, 0, 0)
    assert decoded.getpixel((10, 35)) == (0, 0, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode):
    image = Image.new(mode, (2, 1))
    image.putpixel((0, 0), (0,) * (len(mode) - 1) + (0,))
    image.putpixel((1, 0), (0,) * (len(mode) - 1) + (255,))
    decoded = decode_image(encode(image))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((1, 0)) == (0, 0, 0)


def test_a_palette_with_a_transparent_colour_is_laid_over_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    decoded = decode_image(encode(image, "PNG", transparency=0))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((1, 0)) == (0, 255, 0)


def test_cmyk_becomes_rgb():
    decoded = decode_image(encode(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"))
    red, green, blue = decoded.getpixel((4, 4))
    # Full cyan is (0, 255, 255); JPEG may move a flat colour by a few levels.
    assert red < 5
    assert green > 250
    assert blue > 250


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(kind):
    levels = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    decoded = decode_image(encode(Image.fromarray(levels), kind))
    assert [decoded.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


def test_one_bit_pictures_become_black_and_white():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    decoded = decode_image(encode(image))
    assert [decoded.getpixel((x, 0)) for x in range(2)] == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    decoded = decode_image(encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True))
    assert decoded.getpixel((8, 8)) == (255, 0, 0)


def test_pixels_without_a_standard_range_are_refused():
    with pytest.raises(ImageError, match="no standard range"):
        decode_image(encode(Image.fromarray(np.zeros((2, 2), dtype=np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_picture_is_refused(kind):
    data = encode(noise(), kind)
    with pytest.raises(ImageError, match="truncated or damaged"):
        decode_image(data[: len(data) // 2])


@pytest.mark.parametrize(
    "data", [b"", b"no picture at all", bytes(1000), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"]
)
def test_bytes_in_no_known_format_are_refused(data):
    with pytest.raises(ImageError, match="not a picture in a known format"):
        decode_image(data)


@pytest.mark.parametrize("read", [decode_image, image_header])
def test_a_decompression_bomb_is_refused_by_its_header(read):
    """The pixels are never decoded: all of them are missing, and still it is the size that is told."""
    data = encode(Image.new("1", (5000, 4000)))
    header_only = data[: data.index(b"IDAT") + 8]
    with pytest.raises(ImageError, match="5000 x 4000 pixels, more than the 1000000 allowed"):
        read(header_only, max_pixels=1_000_000)


def test_a_bomb_past_pillows_own_limit_is_refused_whatever_is_allowed():
    data = encode(Image.new("1", (100, 100)))
    # Width and height of a PNG stand at bytes 16 to 24, their checksum at 29 to 33.
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + data[24:29]
    with pytest.raises(ImageError, match="decompression bomb"):
        decode_image(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:], max_pixels=10**12)


def test_the_limit_itself_is_allowed():
    assert decode_image(encode(noise(40, 30)), max_pixels=1200).size == (40, 30)


def test_the_extension_follows_the_content_and_the_size_is_read():
    assert image_header(encode(noise(), "JPEG")) == ("jpg", (40, 30))
    assert image_header(encode(noise(), "WEBP")) == ("webp", (40, 30))
