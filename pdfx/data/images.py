"""From untrusted image bytes to RGB pictures, or to one sentence that says why not."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image

MAX_IMAGE_PIXELS = 89_478_485

EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif"}
"""Formats that are read, with the extension of their members. Formats whose readers start other programs (EPS) are left out on purpose."""

_FORMATS = [name for name in EXTENSIONS if name != "MPO"]

_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I;16", "I;16L", "I;16B", "I;16N"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""
_LOOKS = [
    (b"<svg", "an SVG drawing"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "an XML document"),
    (b"%pdf", "a PDF document"),
    (b"%!ps", "a PostScript document"),
    (b"{", "a JSON document"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"version https://git-lfs", "a pointer of Git LFS"),
    (b"\x89png", "a damaged PNG picture"),
    (b"\xff\xd8", "a damaged JPEG picture"),
    (b"gif8", "a damaged GIF picture"),
    (b"ii*\0", "a damaged TIFF picture"),
    (b"mm\0*", "a damaged TIFF picture"),
]


class ImageError(ValueError):
    """A picture that cannot be used; the message is the part of a sentence that says why."""


def decode_image(data: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Decode to an upright RGB picture that no longer needs ``data``.

    The EXIF orientation is applied, transparency is laid over white, 16-bit channels are scaled to 8 bits, and of an animation or a file of several pages
    the first is taken. Colour profiles are not applied.

    Raises:
        ImageError: no known format, truncated or damaged, more than ``max_pixels`` pixels (found before anything is decoded), or a pixel type
            without a standard range or a way to RGB.
    """
    image = _open(data, max_pixels)
    if image.mode in ("I", "F"):
        raise ImageError(f"the {image.format} picture has 32-bit pixels (type {image.mode}), which have no standard range; convert it to 8 or 16 bits")
    if image.mode not in _MODES:
        raise ImageError(f"the {image.format} picture has pixels of type {image.mode}, which have no plain way to RGB; convert it")
    try:
        with _quiet():
            image.load()
            return _to_rgb(_upright(image))
    except Exception as error:  # Pillow's decoders meet damaged bytes with many exception types (OSError, SyntaxError, struct.error, IndexError, ...)
        raise ImageError(f"the {image.format} picture is truncated or damaged ({_brief(error)})") from error


def image_header(data: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> tuple[str, tuple[int, int]]:
    """The member extension that fits the content, and (width, height) as stored, without decoding pixels.

    Raises:
        ImageError: no known format, or more than ``max_pixels`` pixels.
    """
    image = _open(data, max_pixels)
    return EXTENSIONS[image.format], image.size


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        with _quiet():
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.UnidentifiedImageError:
        raise ImageError(f"the {len(data)} bytes are no picture in a known format ({', '.join(_FORMATS)}){_guess(data)}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"the picture is refused as a decompression bomb ({_brief(error)})") from error
    except Exception as error:  # see decode_image
        raise ImageError(f"the picture's header is truncated or damaged ({_brief(error)})") from error
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"the {image.format} picture has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise ImageError(f"the picture has {width} x {height} pixels, more than the {max_pixels} allowed")
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata of a sound picture
        orientation = None
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_sixteen_bits(np.asarray(image).astype(np.uint16), image.info.get("transparency"))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _from_sixteen_bits(levels: np.ndarray, transparent: int | None) -> Image.Image:
    """Pillow's own conversion clips at 255, which turns nearly every 16-bit picture white.

    Args:
        levels: uint16 [height, width]
        transparent: the level that stands for transparency.
    """
    grey = (levels >> 8).astype(np.uint8)
    if isinstance(transparent, int):
        grey[levels == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _guess(data: bytes) -> str:
    """What bytes that are no picture look like, as the end of a sentence's part."""
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((f"; they look like {name}" for sign, name in _LOOKS if start.startswith(sign) or (sign == b"<svg" and sign in start)), "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns about large or oddly tagged pictures; what matters of that is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
