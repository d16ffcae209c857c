"""What the catalogues of pictures share: a case, and how to make pictures and parts of files."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

RED = (255, 0, 0)
GREEN = (0, 255, 0)
BLUE = (0, 0, 255)
YELLOW = (255, 255, 0)
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)


@dataclass(frozen=True)
class Picture:
    """Bytes that are given as a picture, and what must come of them: these pixels, or a refusal.

    Attributes:
        pixels: uint8 [height, width, 3]; None if the picture must be refused.
        tolerance: levels that a pixel may be off, for lossy formats.
        reason: a regular expression that the reason must hold.
    """

    name: str
    data: bytes
    pixels: np.ndarray | None = None
    tolerance: int = 0
    reason: str = ""


def quarters(width: int = 32, height: int = 16) -> np.ndarray:
    """Four colours, one per quarter, so that every turn and every flip shows; blocks of 8 stay whole, so that JPEG
    keeps them flat."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for colour, rows, columns in ((RED, 0, 0), (GREEN, 0, 1), (BLUE, 1, 0), (YELLOW, 1, 1)):
        pixels[rows * height // 2 : (rows + 1) * height // 2, columns * width // 2 : (columns + 1) * width // 2] = (
            colour
        )
    return pixels


def noise(width: int = 40, height: int = 30) -> np.ndarray:
    """Pixels that no compression makes small, so that a cut anywhere loses some."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def flat(colour: tuple[int, int, int], width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes, interlace: int = 0) -> bytes:
    """A PNG from its parts.

    Args:
        colour: the colour type: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGBA.
        rows: unfiltered rows, each after a zero byte.
        extra: chunks between header and data.
    """
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    parts = [png_chunk(b"IHDR", header), *extra, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(entries: list[tuple[int, int, int, int]], data: bytes = b"", next_directory: int = 0) -> bytes:
    """A little-endian TIFF of one directory at byte 8; ``data`` follows it.

    Args:
        entries: (tag, type, count, value), in order of their tags.
    """
    directory = (
        struct.pack("<H", len(entries))
        + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        + struct.pack("<I", next_directory)
    )
    return b"II*\0" + struct.pack("<I", 8) + directory + data


def tiff_entries(
    width: int, height: int, bits: int = 8, compression: int = 1, photometric: int = 1, strip: int = 0, length: int = 0
) -> list:
    """Those of a grey picture of one strip."""
    values = [
        (256, width),
        (257, height),
        (258, bits),
        (259, compression),
        (262, photometric),
        (273, strip),
        (277, 1),
        (278, height),
        (279, length),
    ]
    return [(tag, 4 if tag in (256, 257, 273, 278, 279) else 3, 1, value) for tag, value in values]


def jpeg_segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def replaced(data: bytes, place: int, content: bytes) -> bytes:
    return data[:place] + content + data[place + len(content) :]
