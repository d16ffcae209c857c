"""Bounds on what a picture's file may ask of Pillow: a small one can ask for hours, or for all memory."""

from __future__ import annotations

import re
import struct
from typing import IO

from PIL import ImageFile

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

_SCAN_PIXELS = 25 * MAX_IMAGE_PIXELS
"""A JPEG's scans times its pixels: two to three seconds. Files of every day have up to 14 scans."""
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
"""What stands between a JPEG's segments and ends a scan's data."""
_STRIP_TAGS = (273, 279, 324, 325)
"""A TIFF's offsets and lengths of strips and of tiles."""


class ImageError(ValueError):
    """A picture that cannot be used; the message is the part of a sentence that says why."""


def refuse_pieces(data: bytes) -> None:
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


def refuse_slow(image: ImageFile.ImageFile, name: str) -> None:
    """Raises ImageError for pixels, still to be read, that would take too long to decode, or whose file is closed."""
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


def _scans(stream: IO[bytes], enough: int) -> int:
    """The scans of a JPEG, from a quick count of where one could begin if that is at most ``enough``."""
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
