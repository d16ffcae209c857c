"""From untrusted image bytes to RGB pictures, or to a sentence why not: the only place that opens pictures."""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageFile

from .picture_bounds import MAX_IMAGE_PIXELS, ImageError, refuse_pieces, refuse_slow

EXTENSIONS = {
    "PNG": "png",
    "JPEG": "jpg",
    "MPO": "jpg",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
}
"""Formats that are read, with their members' extension. Formats whose readers start programs (EPS) are left out."""

_FORMATS = [name for name in EXTENSIONS if name != "MPO"]

_MODES = {*"1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr HSV I;16 I;16L I;16B I;16N".split()}
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


def decode_image(given: bytes | str | os.PathLike | Image.Image, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """What the model sees of a picture: upright, RGB, 8 bits per channel. It no longer needs the file.

    The EXIF orientation is applied, transparency is laid over white, 16-bit channels are scaled to 8 bits, and of an
    animation or a file of several pages the first is taken. Colour profiles are not applied.

    Args:
        given: a file's content, its path, or an image of Pillow's; one that is upright RGB without transparency comes
            back itself.
        max_pixels: of a file.

    Raises:
        ImageError: no known format, truncated or damaged, more than ``max_pixels`` pixels (found before anything is
            decoded), made to take long, or a pixel type without a standard range or a way to RGB.
    """
    image = given if isinstance(given, Image.Image) else _open(_content(given, max_pixels), max_pixels)
    name = f"the {image.format} picture" if image.format else "the picture"
    _refuse_pixel_types(image, name)
    try:
        with _quiet():
            if isinstance(image, ImageFile.ImageFile) and image.tile:
                refuse_slow(image, name)
                _scale_transparency(image)
            image.load()
            turn = _turn(image)
            if image is given and image.mode == "RGB" and turn is None and not image.has_transparency_data:
                return image
            rgb = _to_rgb(image if turn is None else image.transpose(turn))
    except ImageError:
        raise
    # Pillow's decoders meet damaged bytes with many types of exception (OSError, SyntaxError, struct.error, ...).
    except Exception as error:
        raise ImageError(f"{name} is truncated or damaged ({_brief(error)})") from error
    # What it says of turns and transparency has been done.
    rgb.info.clear()
    return rgb


def image_header(data: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> tuple[str, tuple[int, int]]:
    """The member extension that fits the content, and (width, height) as stored, without decoding pixels.

    Raises:
        ImageError: no known format, or more than ``max_pixels`` pixels.
    """
    image = _open(data, max_pixels)
    return EXTENSIONS[str(image.format)], image.size


def max_file_bytes(max_pixels: int) -> int:
    """Files that are larger than a picture of so many pixels can be are not read."""
    return 8 * max_pixels + (1 << 26)


def _content(given: bytes | str | os.PathLike, max_pixels: int) -> bytes:
    if isinstance(given, (bytes, bytearray, memoryview)):
        return bytes(given)
    if not isinstance(given, (str, os.PathLike)):
        raise ImageError(
            f"a picture is given as a path, as the bytes of its file or as a PIL image, not as {type(given).__name__}"
        )
    try:
        status = os.stat(given)
        if stat.S_ISREG(status.st_mode) and status.st_size <= max_file_bytes(max_pixels):
            with open(given, "rb") as stream:
                return stream.read(status.st_size)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ImageError(f"the file {str(given)!r} cannot be read ({getattr(error, 'strerror', error)})") from None
    raise ImageError(f"{str(given)!r} is not a plain file of at most {max_file_bytes(max_pixels)} bytes")


def _open(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    refuse_pieces(data)
    try:
        with _quiet():
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.UnidentifiedImageError:
        raise ImageError(
            f"the {len(data)} bytes are not a picture in a known format ({', '.join(_FORMATS)}){_guess(data)}"
        ) from None
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


def _refuse_pixel_types(image: Image.Image, name: str) -> None:
    bits, kind = (_tiff_tag(image, tag) for tag in (ExifTags.Base.BitsPerSample, ExifTags.Base.SampleFormat))
    # Older Pillows give the 16 bits of a PNG in this type.
    if (image.mode in ("I", "F") and image.format != "PNG") or bits == 12 or kind not in (None, 1):
        signed = "signed " if kind == 2 else ""
        raise ImageError(
            f"{name} has {signed}{bits or 32}-bit pixels (type {image.mode}), which have no standard range; convert "
            "it to 8 or 16 bits"
        )
    if image.mode not in _MODES and image.mode != "I":
        raise ImageError(f"{name} has pixels of type {image.mode}, which have no plain way to RGB; convert it")


def _tiff_tag(image: Image.Image, tag: int) -> int | None:
    """The first value of a tag, None if there is none."""
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) else value


def _scale_transparency(image: ImageFile.ImageFile) -> None:
    """Pillow brings a PNG's pixels to 8 bits, and leaves the transparent level or colour as the file has it."""
    transparent, raw = image.info.get("transparency"), image.tile[0][3]
    if transparent is None or image.format != "PNG":
        return
    if raw in ("L;2", "L;4"):
        image.info["transparency"] = transparent * (85 if raw == "L;2" else 17)
    elif raw == "RGB;16B":
        image.info["transparency"] = tuple(level >> 8 for level in transparent)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes a picture upright, if anything."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata of a sound picture
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.uint16)
        is_dark_high = _tiff_tag(image, ExifTags.Base.PhotometricInterpretation) == 0
        return _from_sixteen_bits(~levels if is_dark_high else levels, image.info.get("transparency"))
    if image.has_transparency_data:
        # Pillow has no way from the first to RGBA.
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
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
    """What bytes that are not a picture look like, to end a sentence with."""
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next(
        (
            f"; they look like {name}"
            for sign, name in _LOOKS
            if start.startswith(sign) or (sign == b"<svg" and sign in start)
        ),
        "",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns about large or oddly tagged pictures; what matters of that is an error here."""
    # The filters are the process's: threads that set them at the same time would leave one another's behind.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
