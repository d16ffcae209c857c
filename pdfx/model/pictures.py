"""From untrusted image bytes to RGB pictures, or to one sentence that says why not: the only place that opens
pictures."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

MAX_IMAGE_PIXELS = 89_478_485
MAX_PIECES = 100_000
"""Chunks of a PNG, strips or tiles of a TIFF: each takes some microseconds, however small it is."""
MAX_SEGMENTS = 4096
"""Segments and fill bytes of a JPEG before its first scan."""
MAX_RUN_LENGTH_PIXELS = 1 << 24
"""Of a BMP with run lengths, which Pillow decodes in Python."""
MAX_PROFILES = 16
"""Of a PNG, each of which is inflated to at most a megabyte; and EXIF segments of a JPEG, which Pillow copies again for
each further one. One is usual."""

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
"""Formats that are read, with the extension of their members. Formats whose readers start other programs (EPS) are left
out on purpose."""

_FORMATS = [name for name in EXTENSIONS if name != "MPO"]

_MODES = {
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "I;16",
    "I;16L",
    "I;16B",
    "I;16N",
}
_SCAN_PIXELS = 25 * MAX_IMAGE_PIXELS
"""A JPEG's scans times its pixels: two to three seconds. Files of every day have up to 14 scans."""
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
"""What stands between a JPEG's segments and ends a scan's data."""
_STRIP_TAGS = (273, 279, 324, 325)
"""A TIFF's offsets and lengths of strips and of tiles."""
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
            if getattr(image, "tile", None):
                _refuse_slow(image, name)
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
    return EXTENSIONS[image.format], image.size


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


def _open(data: bytes, max_pixels: int) -> Image.Image:
    _refuse_pieces(data)
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


def _refuse_slow(image: Image.Image, name: str) -> None:
    """Bounds on what the decoder of pixels that are still to be read repeats: a small file can ask for hours."""
    if image.fp is None or getattr(image.fp, "closed", False):
        raise ImageError(f"{name} was closed before its pixels were read; give its path, or load it first")
    codec, pixels = image.tile[0][0], image.width * image.height
    if codec == "bmp_rle" and pixels > MAX_RUN_LENGTH_PIXELS:
        raise ImageError(
            f"{name} has run lengths and {pixels} pixels, more than the {MAX_RUN_LENGTH_PIXELS} allowed then"
        )
    if codec == "jpeg" and image.format in ("JPEG", "MPO"):
        allowed = max(25, min(100, _SCAN_PIXELS // pixels))
        scans = _scans(image.fp, allowed)
        if scans > allowed:
            raise ImageError(f"{name} has {scans} scans, more than the {allowed} allowed for its {pixels} pixels")


def _scale_transparency(image: Image.Image) -> None:
    """Pillow brings a PNG's pixels to 8 bits, and leaves the transparent level or colour as the file has it."""
    transparent, raw = image.info.get("transparency"), image.tile[0][3]
    if transparent is None or image.format != "PNG":
        return
    if raw in ("L;2", "L;4"):
        image.info["transparency"] = transparent * (85 if raw == "L;2" else 17)
    elif raw == "RGB;16B":
        image.info["transparency"] = tuple(level >> 8 for level in transparent)


def _scans(stream: BinaryIO, enough: int) -> int:
    """The scans of a JPEG. Places where one could begin are counted first, which is quick and rarely gives more than
    ``enough``."""
    back = stream.tell()
    stream.seek(0)
    data = stream.read()
    stream.seek(back)
    count, place = data.count(b"\xff\xda"), 2
    if count <= enough:
        return count
    count = 0
    while (found := _MARKER.search(data, place)) and found[1] != b"\xd9":
        count += found[1] == b"\xda"
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return count


def _refuse_pieces(data: bytes) -> None:
    """Raises ImageError for a PNG of too many chunks or profiles, or a TIFF of too many strips or tiles: Pillow reads
    all of them before the size is known."""
    is_png = data.startswith(b"\x89PNG")
    try:
        pieces = _chunks(data) if is_png else _strips(data) if data[:2] in (b"II", b"MM") else 0
    except struct.error:  # cut or damaged, which Pillow is to say
        return
    if pieces > MAX_PIECES or (is_png and data.count(b"iCCP") > MAX_PROFILES):
        raise ImageError(
            f"the picture has more chunks, strips or tiles than the {MAX_PIECES} allowed, or more colour profiles "
            f"than the {MAX_PROFILES} allowed"
        )
    if data.startswith(b"\xff\xd8") and (_segments(data) > MAX_SEGMENTS or data.count(b"Exif\0\0") > MAX_PROFILES):
        raise ImageError(
            f"the JPEG picture has more than {MAX_SEGMENTS} segments, or more than {MAX_PROFILES} with EXIF data"
        )


def _segments(data: bytes) -> int:
    """The segments of a JPEG before its first scan and their fill bytes, counted no further than needed."""
    place, count = 2, 0
    while count <= MAX_SEGMENTS and (found := _MARKER.search(data, place)) and found[1] not in (b"\xda", b"\xd9"):
        count += len(found[0]) - 1
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return count


def _chunks(data: bytes) -> int:
    """The chunks of a PNG, counted no further than needed."""
    place, count = 8, 0
    while place + 8 <= len(data) and count <= MAX_PIECES:
        place += 12 + struct.unpack_from(">I", data, place)[0]
        count += 1
    return count


def _strips(data: bytes) -> int:
    """The largest number of strips or tiles that a TIFF's first directory declares."""
    order, is_big = "<" if data[:1] == b"I" else ">", 43 in data[2:4]
    place = struct.unpack_from(order + ("8xQ" if is_big else "4xI"), data)[0]
    head, entry = (order + "Q", order + "HHQ8x") if is_big else (order + "H", order + "HHI4x")
    first = place + struct.calcsize(head)
    size = min(struct.unpack_from(head, data, place)[0], 1 << 16) * struct.calcsize(entry)
    size = min(size, (len(data) - first) // struct.calcsize(entry) * struct.calcsize(entry))
    return max(
        (count for tag, _, count in struct.iter_unpack(entry, data[first : first + size]) if tag in _STRIP_TAGS),
        default=0,
    )


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes a picture upright, if anything."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
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
