"""Odd pictures that must be read, with the pixels that must come of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageCms

from .pictures import (
    BLACK,
    BLUE,
    GREEN,
    RED,
    WHITE,
    YELLOW,
    Picture,
    encode,
    flat,
    jpeg_segment,
    noise,
    png,
    png_chunk,
    quarters,
    replaced,
    tiff,
    tiff_entries,
)

JPEG_TOLERANCE = 6
"""Levels that a flat colour may be off after the conversions to YCbCr and back, and quantisation at quality 95."""
AVIF_TOLERANCE = 12
"""Its transform is less exact at the edges of colours."""
TURNS = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels, 1),
}
"""What each EXIF orientation asks for."""
KINDS = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


def sound_pictures() -> Iterator[Picture]:
    for make in (
        _turned,
        _modes,
        _sixteen_bits,
        _dark_high,
        _compressions,
        _animations,
        _pages,
        _metadata,
        _trailing,
        _smallest,
        _thin,
        _bitmaps,
        _gifs,
    ):
        yield from make()


def tolerance_of(kind: str) -> int:
    return {"JPEG": JPEG_TOLERANCE, "AVIF": AVIF_TOLERANCE}.get(kind, 0)


def _turned() -> Iterator[Picture]:
    for kind, options in KINDS.items():
        for orientation, turn in TURNS.items():
            exif = Image.Exif()
            exif[0x0112] = orientation
            yield Picture(
                f"{kind}-orientation-{orientation}",
                encode(quarters(), kind, exif=exif, **options),
                turn(quarters()),
                tolerance_of(kind),
            )


def _modes() -> Iterator[Picture]:
    grey = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    as_rgb = np.repeat(grey[:, :, None], 3, axis=2)
    for kind in ("PNG", "TIFF", "BMP", "WEBP"):
        yield Picture(f"{kind}-grey", encode(grey, kind, **({"lossless": True} if kind == "WEBP" else {})), as_rgb)
    bits = (np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)
    for kind in ("PNG", "TIFF", "BMP"):
        yield Picture(
            f"{kind}-one-bit", encode(Image.fromarray(bits).convert("1"), kind), np.repeat(bits[:, :, None], 3, axis=2)
        )
    yield Picture(
        "JPEG-grey", encode(np.full((8, 8), 100, np.uint8), "JPEG", quality=95), flat((100,) * 3, 8, 8), JPEG_TOLERANCE
    )
    for count in (2, 4, 16, 256):
        colours = np.random.default_rng(count).integers(0, 256, (count, 3), dtype=np.uint8)
        image = Image.new("P", (16, 16))
        image.putpalette(colours.reshape(-1).tolist())
        image.putdata([i % count for i in range(256)])
        expected = colours[np.arange(256) % count].reshape(16, 16, 3)
        for kind in ("PNG", "GIF", "TIFF", "BMP"):
            yield Picture(f"{kind}-palette-{count}", encode(image, kind), expected)
    yield from _transparent()
    yield Picture(
        "JPEG-cmyk",
        encode(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=95),
        flat((0, 255, 255), 8, 8),
        JPEG_TOLERANCE,
    )
    yield Picture("TIFF-cmyk", encode(Image.new("CMYK", (8, 8), (0, 255, 0, 0)), "TIFF"), flat((255, 0, 255), 8, 8))
    yield Picture(
        "TIFF-ycbcr",
        encode(Image.new("YCbCr", (16, 16), (128, 128, 128)), "TIFF", compression="raw"),
        flat((128,) * 3, 16, 16),
    )


def _transparent() -> Iterator[Picture]:
    half = np.zeros((4, 4, 4), np.uint8)
    half[:, :2] = (255, 0, 0, 255)
    half[:, 2:] = (9, 9, 9, 0)
    expected = np.concatenate([flat(RED, 2, 4), flat(WHITE, 2, 4)], axis=1)
    for kind in ("PNG", "TIFF", "WEBP"):
        yield Picture(
            f"{kind}-transparent",
            encode(half, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})),
            expected,
        )
    yield Picture("PNG-grey-alpha", encode(Image.new("LA", (3, 3), (0, 0)), "PNG"), flat(WHITE, 3, 3))
    blended = encode(Image.new("RGBA", (3, 3), (0, 0, 0, 51)), "PNG")
    yield Picture("PNG-a-fifth-opaque", blended, flat((204, 204, 204), 3, 3))
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    expected = np.array([[WHITE, GREEN]], np.uint8)
    for kind in ("PNG", "GIF"):
        yield Picture(f"{kind}-palette-transparent", encode(palette, kind, transparency=0), expected)
    yield Picture("PNG-palette-alpha-table", encode(palette, "PNG", transparency=bytes([0, 255])), expected)
    row = bytes([0, *RED, *GREEN])
    yield Picture(
        "PNG-rgb-transparent-colour", png(2, 1, 8, 2, row, png_chunk(b"tRNS", struct.pack(">HHH", *RED))), expected
    )
    level = png(2, 1, 8, 0, bytes([0, 7, 0]), png_chunk(b"tRNS", struct.pack(">H", 7)))
    yield Picture("PNG-grey-transparent-level", level, np.array([[WHITE, BLACK]], np.uint8))
    for bits, row, shown in ((1, 0b01000000, (255, 255)), (2, 0b01000000, (255, 0)), (4, 0b00010000, (255, 0))):
        few = png(2, 1, bits, 0, bytes([0, row]), png_chunk(b"tRNS", struct.pack(">H", row >> 8 - bits)))
        yield Picture(
            f"PNG-transparent-level-of-{bits}-bits", few, np.array([[(level,) * 3 for level in shown]], np.uint8)
        )
    row = b"\0" + np.array([0x1234, 0x5678, 0x9ABC, 0x12, 0x56, 0x9A], ">u2").tobytes()
    for name, colour, shown in (
        ("high", (0x1234, 0x5678, 0x9ABC), [WHITE, BLACK]),
        ("low", (0x12, 0x56, 0x9A), [(0x12, 0x56, 0x9A), WHITE]),
    ):
        deep = png(2, 1, 16, 2, row, png_chunk(b"tRNS", struct.pack(">HHH", *colour)))
        yield Picture(f"PNG-transparent-colour-of-16-bits-{name}", deep, np.array([shown], np.uint8))
    grey = np.array([[[200, 0], [50, 255]]], np.uint8)
    image = Image.fromarray(grey, "LA")
    yield Picture("TIFF-grey-alpha", encode(image, "TIFF"), np.array([[WHITE, (50,) * 3]], np.uint8))
    # Its alpha is multiplied into the levels.
    associated = encode(image, "TIFF", tiffinfo={338: 1})
    yield Picture("TIFF-grey-associated-alpha", associated, np.array([[WHITE, (50,) * 3]], np.uint8))


def _sixteen_bits() -> Iterator[Picture]:
    levels = np.array([[0, 256, 32768, 65535]], np.uint16)
    expected = np.repeat((levels >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    for kind in ("PNG", "TIFF"):
        yield Picture(f"{kind}-sixteen-bit-grey", encode(levels, kind), expected)
    yield Picture("TIFF-sixteen-bit-big-endian", _big_endian_tiff(levels), expected)
    rgb = b"\0" + np.array([0x1234, 0x5678, 0x9ABC], ">u2").tobytes()
    yield Picture("PNG-sixteen-bit-rgb", png(1, 1, 16, 2, rgb), np.array([[[0x12, 0x56, 0x9A]]], np.uint8))
    rgba = b"\0" + np.array([0x1234, 0x5678, 0x9ABC, 0xFFFF], ">u2").tobytes()
    yield Picture("PNG-sixteen-bit-rgba", png(1, 1, 16, 6, rgba), np.array([[[0x12, 0x56, 0x9A]]], np.uint8))
    alpha = b"\0" + np.array([0x8000, 0x0000], ">u2").tobytes()
    yield Picture("PNG-sixteen-bit-grey-alpha", png(1, 1, 16, 4, alpha), flat(WHITE, 1, 1))
    transparent = png(2, 1, 16, 0, b"\0" + np.array([0x0100, 0x0200], ">u2").tobytes(), png_chunk(b"tRNS", b"\1\0"))
    yield Picture("PNG-sixteen-bit-transparent-level", transparent, np.array([[WHITE, (2, 2, 2)]], np.uint8))


def _dark_high() -> Iterator[Picture]:
    """TIFFs whose highest level is black."""
    for bits, data, shown in (
        (1, b"\x80", (0, 255)),
        (2, b"\x10", (255, 170)),
        (4, b"\x1f", (238, 0)),
        (8, b"\x10\xff", (239, 0)),
        (16, b"\0\x10\0\xff", (239, 0)),
    ):
        expected = np.array([[(level,) * 3 for level in shown]], np.uint8)
        yield Picture(
            f"TIFF-dark-high-{bits}-bits",
            tiff(tiff_entries(2, 1, bits=bits, photometric=0, strip=122, length=len(data)), data),
            expected,
        )
    levels = np.array([[0x1000, 0xFF00]], np.uint16)
    for compression in ("raw", "tiff_adobe_deflate", "tiff_lzw"):
        data = encode(levels, "TIFF", compression=compression, tiffinfo={262: 0})
        yield Picture(f"TIFF-dark-high-16-bits-{compression}", data, np.array([[(239,) * 3, BLACK]], np.uint8))


def _big_endian_tiff(levels: np.ndarray) -> bytes:
    data = levels.astype(">u2").tobytes()
    values = [
        (256, 4),
        (257, 1),
        (258, 16),
        (259, 1),
        (262, 1),
        (273, 8 + 2 + 9 * 12 + 4),
        (277, 1),
        (278, 1),
        (279, len(data)),
    ]
    directory = b"".join(struct.pack(">HHI", tag, 3, 1) + struct.pack(">HH", value, 0) for tag, value in values)
    return b"MM\0*" + struct.pack(">I", 8) + struct.pack(">H", len(values)) + directory + struct.pack(">I", 0) + data


def _compressions() -> Iterator[Picture]:
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield Picture(f"TIFF-{compression}", encode(noise(), "TIFF", compression=compression), noise())
    yield Picture("TIFF-jpeg", encode(quarters(), "TIFF", compression="jpeg", quality=95), quarters(), 40)
    yield Picture(
        "JPEG-progressive", encode(quarters(), "JPEG", progressive=True, **KINDS["JPEG"]), quarters(), JPEG_TOLERANCE
    )
    yield Picture(
        "JPEG-restart-markers",
        encode(quarters(), "JPEG", restart_marker_blocks=1, **KINDS["JPEG"]),
        quarters(),
        JPEG_TOLERANCE,
    )
    yield Picture("WEBP-lossy", encode(flat(RED, 16, 16), "WEBP", quality=95), flat(RED, 16, 16), 12)
    yield Picture("PNG-interlaced", png(1, 1, 8, 2, bytes([0, *BLUE]), interlace=1), flat(BLUE, 1, 1))
    split = png(2, 1, 8, 2, bytes([0, *RED, *GREEN]))
    yield Picture("PNG-data-in-many-chunks", _split_data(split), np.array([[RED, GREEN]], np.uint8))


def _split_data(data: bytes) -> bytes:
    """The compressed bytes of a small PNG in a chunk each."""
    start = data.index(b"IDAT") - 4
    length = struct.unpack(">I", data[start : start + 4])[0]
    content = data[start + 8 : start + 8 + length]
    return data[:start] + b"".join(png_chunk(b"IDAT", bytes([byte])) for byte in content) + data[start + 12 + length :]


def _animations() -> Iterator[Picture]:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE, GREEN)]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("AVIF", KINDS["AVIF"])):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)
        yield Picture(f"{kind}-animated", data, flat(RED, 16, 16), tolerance_of(kind))
    yield Picture(
        "GIF-animated-broken-later",
        encode(frames[0], "GIF", save_all=True, append_images=frames[1:])[:-20],
        flat(RED, 16, 16),
    )
    with_default = encode(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    yield Picture("PNG-animated-beside-its-picture", with_default, flat(RED, 16, 16))


def _pages() -> Iterator[Picture]:
    pages = [Image.fromarray(noise(8, 8))] + [Image.new("L", (4 + i, 4)) for i in range(200)]
    many = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    yield Picture("TIFF-201-pages", many, noise(8, 8))
    grey = bytes(range(0, 160, 10))
    own = tiff(tiff_entries(4, 4, strip=122, length=16), grey, next_directory=8)
    yield Picture(
        "TIFF-directory-that-follows-itself", own, np.repeat(np.frombuffer(grey, np.uint8).reshape(4, 4, 1), 3, axis=2)
    )
    away = tiff(tiff_entries(4, 4, strip=122, length=16), grey, next_directory=2**31)
    yield Picture(
        "TIFF-second-directory-beyond-the-end",
        away,
        np.repeat(np.frombuffer(grey, np.uint8).reshape(4, 4, 1), 3, axis=2),
    )


def _metadata() -> Iterator[Picture]:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind, options in KINDS.items():
        for name, icc in (("profile", profile), ("broken-profile", b"no profile at all" * 20)):
            if (kind, name) != ("AVIF", "broken-profile"):
                yield Picture(
                    f"{kind}-{name}",
                    encode(quarters(), kind, icc_profile=icc, **options),
                    quarters(),
                    tolerance_of(kind),
                )
    plain = encode(quarters(), "JPEG", **KINDS["JPEG"])
    for orientation in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield Picture(
            f"JPEG-orientation-{orientation}",
            encode(quarters(), "JPEG", exif=exif, **KINDS["JPEG"]),
            quarters(),
            JPEG_TOLERANCE,
        )
    for name, content in {
        "empty": b"",
        "cut": b"II*\0\x08\0\0\0\x05\0\x12\x01",
        "noise": b"\xff" * 64,
        "directory-beyond-the-end": b"II*\0\xff\xff\xff\x7f",
        "directory-that-follows-itself": b"II*\0\x08\0\0\0\x00\0\x08\0\0\0",
        "orientation-as-text": b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0six\0\0\0\0\0",
    }.items():
        data = plain[:2] + jpeg_segment(0xE1, b"Exif\0\0" + content) + plain[2:]
        yield Picture(f"JPEG-exif-{name}", data, quarters(), JPEG_TOLERANCE)
    yield Picture(
        "JPEG-long-comment", plain[:2] + jpeg_segment(0xFE, b"c" * 65000) * 20 + plain[2:], quarters(), JPEG_TOLERANCE
    )
    private = png(
        1,
        1,
        8,
        2,
        bytes([0, *RED]),
        png_chunk(b"prVt", b"private"),
        png_chunk(b"tEXt", b"no separator"),
        png_chunk(b"tIME", b"\xff" * 7),
    )
    yield Picture("PNG-odd-extra-chunks", private, flat(RED, 1, 1))
    yield from _repairable(plain)


def _repairable(jpeg: bytes) -> Iterator[Picture]:
    """What is wrong leaves no doubt about the pixels."""
    good = encode(noise(), "PNG")
    length = good.index(b"IDAT") - 4
    for name, value in (("longer-than-the-file", b"\x7f\xff\xff\xff"), ("of-negative-length", b"\xff\xff\xff\xff")):
        yield Picture(f"PNG-chunk-{name}", replaced(good, length, value), noise())
    tables, scan = jpeg.index(b"\xff\xc4"), jpeg.index(b"\xff\xda")
    yield Picture("JPEG-standard-code-tables-left-out", jpeg[:tables] + jpeg[scan:], quarters(), JPEG_TOLERANCE)
    yield Picture("JPEG-segment-of-length-zero", jpeg[:2] + b"\xff\xe0\0\0" + jpeg[2:], quarters(), JPEG_TOLERANCE)
    for width, height in ((0, 4), (4, 0), (0, 0)):
        screen = replaced(encode(quarters(), "GIF"), 6, struct.pack("<HH", width, height))
        yield Picture(f"GIF-screen-of-{width}-by-{height}", screen, quarters())


def _trailing() -> Iterator[Picture]:
    for kind, options in (*KINDS.items(), ("GIF", {}), ("BMP", {})):
        yield Picture(
            f"{kind}-with-more-behind-it",
            encode(quarters(), kind, **options) + b"<html>" * 100,
            quarters(),
            tolerance_of(kind),
        )
    jpeg = encode(quarters(), "JPEG", **KINDS["JPEG"])
    yield Picture("JPEG-two-in-one-file", jpeg + encode(noise(), "JPEG"), quarters(), JPEG_TOLERANCE)
    yield Picture("GIF-without-its-end-marker", encode(quarters(), "GIF")[:-1], quarters())
    yield Picture("PNG-without-its-end-chunk", encode(quarters(), "PNG")[:-12], quarters())
    mpo = encode(quarters(), "MPO", save_all=True, append_images=[Image.fromarray(noise())], **KINDS["JPEG"])
    yield Picture("MPO-two-views", mpo, quarters(), JPEG_TOLERANCE)


def _smallest() -> Iterator[Picture]:
    for kind, options in (*KINDS.items(), ("GIF", {}), ("BMP", {})):
        yield Picture(
            f"{kind}-one-pixel", encode(flat(YELLOW, 1, 1), kind, **options), flat(YELLOW, 1, 1), tolerance_of(kind)
        )


def _thin() -> Iterator[Picture]:
    for width, height in ((1, 1000), (2000, 1), (1, 60000), (60000, 1)):
        for kind in ("PNG", "JPEG"):
            pixels = flat(GREEN, width, height)
            yield Picture(
                f"{kind}-{width}-by-{height}", encode(pixels, kind, **KINDS[kind]), pixels, tolerance_of(kind)
            )


def _bitmaps() -> Iterator[Picture]:
    header = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 54)
    rows = bytes([0, 0, 255, 0, 255, 0, 0, 0]) + bytes(
        [255, 0, 0, 0, 255, 255, 0, 0]
    )  # blue, green, red; rows padded to 4 bytes
    expected = np.array([[RED, GREEN], [BLUE, YELLOW]], np.uint8)
    upright = header + struct.pack("<IiiHHIIiiII", 40, 2, -2, 1, 24, 0, 16, 0, 0, 0, 0) + rows
    yield Picture("BMP-from-top-to-bottom", upright, expected)
    usual = header + struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 24, 0, 16, 0, 0, 0, 0) + rows
    yield Picture("BMP-from-bottom-to-top", usual, expected[::-1])
    yield Picture("BMP-wrong-file-size", b"BM\xff\xff\xff\x7f" + usual[6:], expected[::-1])


def _gifs() -> Iterator[Picture]:
    screen = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes([*BLUE, *RED])
    frame = b"," + struct.pack("<HHHHB", 1, 1, 2, 2, 0) + b"\x02" + b"\x03" + _lzw_of_four_ones() + b"\0"
    expected = flat(BLUE, 4, 4)
    expected[1:3, 1:3] = RED
    yield Picture("GIF-frame-smaller-than-its-screen", screen + frame + b";", expected)
    comment = b"!\xfe" + b"\xff" + b"c" * 255 + b"\0"
    yield Picture("GIF-comments-before-the-frame", screen + comment * 50 + frame + b";", expected)
    yield Picture(
        "GIF-interlaced", encode(noise(8, 8)[:, :, 0], "GIF", interlace=1), np.repeat(noise(8, 8)[:, :, :1], 3, axis=2)
    )


def _lzw_of_four_ones() -> bytes:
    """GIF's compression of the pixels 1, 1, 1, 1 at a code size of 2: the codes clear, 1, 1, 1, 1, end, in 3 bits each,
    and 4 from the fifth on."""
    bits, place = 0, 0
    for code, width in ((4, 3), (1, 3), (1, 3), (1, 3), (1, 4), (5, 4)):
        bits |= code << place
        place += width
    return bits.to_bytes(3, "little")
