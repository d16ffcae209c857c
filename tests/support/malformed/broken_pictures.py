"""Pictures that must be refused, with what the reason must say."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from .pictures import (
    RED,
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

DAMAGED = "truncated or damaged"
UNKNOWN = "not a picture in a known format"
NOT_WHOLE = f"{DAMAGED}|{UNKNOWN}"
TOO_LARGE = r"pixels, more than the \d+ allowed|decompression bomb"
ENCODINGS = {
    "PNG": ("PNG", {}),
    "JPEG": ("JPEG", {"quality": 95}),
    "JPEG-progressive": ("JPEG", {"quality": 95, "progressive": True}),
    "WEBP-lossless": ("WEBP", {"lossless": True}),
    "WEBP-lossy": ("WEBP", {"quality": 95}),
    "GIF": ("GIF", {}),
    "BMP": ("BMP", {}),
    "TIFF": ("TIFF", {}),
    "TIFF-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "TIFF-deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "AVIF": ("AVIF", {"quality": 90}),
}


def broken_pictures() -> Iterator[Picture]:
    for make in (
        _cut,
        _no_pictures,
        _other_formats,
        _bombs,
        _slow,
        _sizes_of_nothing,
        _pixel_types,
        _pngs,
        _jpegs,
        _gifs,
        _tiffs,
        _others,
    ):
        yield from make()


def _cut() -> Iterator[Picture]:
    for name, (kind, options) in ENCODINGS.items():
        data = encode(noise(), kind, **options)
        for length in (1, 4, 12, 24, len(data) // 10, len(data) // 3, len(data) // 2, len(data) * 3 // 4):
            yield Picture(f"{name}-first-{length}-bytes", data[:length], reason=NOT_WHOLE)


def _no_pictures() -> Iterator[Picture]:
    yield Picture("nothing", b"", reason="0 bytes are not a picture")
    for name, data, reason in (
        (
            "html-page",
            b"<!DOCTYPE html>\n<html><body><h1>404 Not Found</h1></body></html>",
            "they look like an HTML page",
        ),
        ("html-after-blanks", b"\xef\xbb\xbf\r\n  <HTML><title>Sign in</title></HTML>", "they look like an HTML page"),
        ("svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "they look like an SVG drawing"),
        (
            "svg-after-xml",
            b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
            "they look like an SVG drawing",
        ),
        ("xml", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "they look like an XML document"),
        ("json", b'{"error": "not found"}', "they look like a JSON document"),
        (
            "git-lfs-pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "they look like a pointer of Git LFS",
        ),
        ("text", b"This picture is no longer available.", UNKNOWN),
        ("utf-16-text", "kein Bild".encode("utf-16"), UNKNOWN),
        ("zeros", bytes(4096), UNKNOWN),
        ("ones", b"\xff" * 4096, UNKNOWN),
        ("program", b"\x7fELF\x02\x01\x01" + bytes(200), UNKNOWN),
        ("gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bytes(50), UNKNOWN),
        ("video", b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41" + bytes(50), UNKNOWN),
        ("audio", b"RIFF\x24\0\0\0WAVEfmt " + bytes(50), UNKNOWN),
        ("heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), UNKNOWN),
        ("jpeg-in-base64", b"data:image/jpeg;base64,/9j/4AAQSkZJRgABAQAAAQABAAD/", UNKNOWN),
        ("tar", _tar(), UNKNOWN),
        ("zip", _zip(), "they look like a ZIP archive"),
    ):
        yield Picture(name, data, reason=reason)
    for seed in range(8):
        yield Picture(f"random-{seed}", np.random.default_rng(seed).bytes(2000), reason=UNKNOWN)


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    return stream.getvalue()


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.png"), b"")
    return stream.getvalue()


def _other_formats() -> Iterator[Picture]:
    """Pillow can read these, some by starting other programs; they are not asked for."""
    image = Image.fromarray(quarters())
    for kind in (
        "PPM",
        "PCX",
        "TGA",
        "SGI",
        "DDS",
        "ICO",
        "JPEG2000",
        "ICNS",
        "SPIDER",
        "XBM",
        "MSP",
        "PDF",
        "EPS",
        "QOI",
    ):
        other = {
            "XBM": image.convert("1"),
            "MSP": image.convert("1"),
            "SPIDER": image.convert("F"),
            "ICNS": image.resize((32, 32)),
        }
        looks = {"PDF": "they look like a PDF document", "EPS": "they look like a PostScript document"}.get(
            kind, UNKNOWN
        )
        yield Picture(f"{kind}-sound", encode(other.get(kind, image), kind), reason=looks)
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/made) (w) file closefile\n"
    yield Picture("postscript-that-would-write-a-file", program, reason="they look like a PostScript document")


def _bombs() -> Iterator[Picture]:
    """A few bytes that declare more pixels than memory holds."""
    for width, height in ((30000, 30000), (2**31 - 1, 1), (65500, 65500)):
        yield Picture(f"PNG-declares-{width}-by-{height}", png(width, height, 8, 2, b"\0" * 100), reason=TOO_LARGE)
    yield Picture("PNG-of-one-bit-really-that-large", png(20000, 20000, 1, 0, bytes(2501) * 20000), reason=TOO_LARGE)
    yield Picture(
        "GIF-declares-65535-by-65535", replaced(encode(quarters(), "GIF"), 6, b"\xff\xff\xff\xff"), reason=TOO_LARGE
    )
    bmp = encode(quarters(), "BMP")
    yield Picture("BMP-declares-30000-by-30000", replaced(bmp, 18, struct.pack("<ii", 30000, 30000)), reason=TOO_LARGE)
    yield Picture(
        "TIFF-declares-100000-by-100000",
        tiff(tiff_entries(100000, 100000, strip=122, length=16), bytes(16)),
        reason=TOO_LARGE,
    )
    yield Picture(
        "TIFF-declares-all-that-fits",
        tiff(tiff_entries(2**32 - 1, 2**32 - 1, strip=122, length=16), bytes(16)),
        reason=f"{TOO_LARGE}|{NOT_WHOLE}",
    )
    jpeg = encode(quarters(), "JPEG")
    yield Picture(
        "JPEG-declares-65500-by-65500",
        replaced(jpeg, jpeg.index(b"\xff\xc0") + 5, struct.pack(">HH", 65500, 65500)),
        reason=TOO_LARGE,
    )
    canvas = b"VP8X" + struct.pack("<IB3x", 10, 0) + struct.pack("<I", 16383)[:3] * 2
    webp = encode(quarters(), "WEBP", lossless=True)[12:]
    yield Picture("WEBP-declares-16384-by-16384", _riff(canvas + webp), reason=f"{TOO_LARGE}|{NOT_WHOLE}")
    text = png(1, 1, 8, 2, bytes([0, *RED]), png_chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(1 << 27))))
    yield Picture("PNG-text-that-inflates-to-128-megabytes", text, reason=DAMAGED)
    too_much = png(4, 4, 8, 2, bytes(13 * 4))
    start = too_much.index(b"IDAT") - 4
    yield Picture("PNG-data-missing", too_much[:start] + png_chunk(b"IEND", b""), reason=NOT_WHOLE)


def _slow() -> Iterator[Picture]:
    """Small files that take long to decode, or to open."""
    for width, count in ((64, 1500), (9400, 30)):
        jpeg = encode(Image.new("L", (width, width)), "JPEG", progressive=True)
        last = jpeg.rindex(b"\xff\xda")
        scans = jpeg[:-2] + jpeg[last:-2] * count + b"\xff\xd9"
        yield Picture(f"JPEG-of-{count}-scans", scans, reason=r"\d+ scans, more than the \d+ allowed")
    whole = encode(quarters(), "JPEG")
    for name, bytes_, reason in (
        ("5000-segments", b"\xff\xee\0\2" * 5000, "more than 4096 segments"),
        ("a-million-fill-bytes", b"\xff" * 10**6, "more than 4096 segments"),
        ("100-EXIF-segments", b"\xff\xe1\0\x08Exif\0\0" * 100, "with EXIF data"),
    ):
        yield Picture(f"JPEG-of-{name}", whole[:2] + bytes_ + whole[2:], reason=reason)
    one = bytes([0, *RED])
    yield Picture(
        "PNG-of-200000-chunks",
        png(1, 1, 8, 2, one, png_chunk(b"prVt", b"") * 200_000),
        reason="more chunks, strips or tiles",
    )
    profiles = png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(10**6))) * 100
    yield Picture("PNG-of-100-profiles", png(1, 1, 8, 2, one, profiles), reason="more colour profiles")
    for order, name in (("<", "II*\0"), (">", "MM\0*")):
        strips = [
            (256, 4, 1, 1),
            (257, 4, 1, 200_000),
            (258, 3, 1, 8),
            (262, 3, 1, 1),
            (273, 4, 200_000, 8),
            (278, 4, 1, 1),
            (279, 4, 200_000, 8),
        ]
        directory = (
            struct.pack(order + "H", len(strips))
            + b"".join(struct.pack(order + "HHII", *entry) for entry in strips)
            + bytes(4)
        )
        data = name.encode() + struct.pack(order + "I", 8) + directory + bytes(800_000)
        yield Picture(f"TIFF-of-200000-strips-{name[:2]}", data, reason="more chunks, strips or tiles")
    big = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1) + struct.pack("<HHQQ", 324, 16, 10**9, 8) + bytes(8)
    yield Picture("TIFF-of-a-billion-tiles", big, reason="more chunks, strips or tiles")
    header = (
        struct.pack("<2sIHHI", b"BM", 0, 0, 0, 1078)
        + struct.pack("<IiiHHIIiiII", 40, 9000, 9000, 1, 8, 1, 0, 0, 0, 256, 0)
        + bytes(1024)
    )
    yield Picture(
        "BMP-of-run-lengths-and-81-million-pixels",
        header + b"\1\1\0\0" * 9000,
        reason="run lengths and 81000000 pixels",
    )


def _riff(content: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(content)) + b"WEBP" + content


def _sizes_of_nothing() -> Iterator[Picture]:
    for width, height in ((0, 4), (4, 0), (0, 0)):
        size = f"{width}-by-{height}"
        yield Picture(f"PNG-{size}", png(width, height, 8, 2, b"\0" * 100), reason=f"no pixels|{NOT_WHOLE}")
        yield Picture(
            f"BMP-{size}",
            replaced(encode(quarters(), "BMP"), 18, struct.pack("<ii", width, height)),
            reason=f"no pixels|{NOT_WHOLE}",
        )
        yield Picture(
            f"TIFF-{size}",
            tiff(tiff_entries(width, height, strip=122, length=16), bytes(16)),
            reason=f"no pixels|{NOT_WHOLE}",
        )
        jpeg = encode(quarters(), "JPEG")
        yield Picture(
            f"JPEG-{size}",
            replaced(jpeg, jpeg.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width)),
            reason=f"no pixels|{NOT_WHOLE}",
        )


def _pixel_types() -> Iterator[Picture]:
    for name, dtype in (("float", np.float32), ("integer", np.int32)):
        yield Picture(
            f"TIFF-32-bit-{name}",
            encode(Image.fromarray(np.zeros((4, 4), dtype)), "TIFF"),
            reason="32-bit pixels .* no standard range",
        )
    yield Picture(
        "TIFF-lab",
        encode(Image.new("LAB", (4, 4), (128, 128, 128)), "TIFF"),
        reason="pixels of type LAB, which have no plain way to RGB",
    )
    twelve = tiff(tiff_entries(2, 1, bits=12, strip=122, length=3), b"\x80\x0f\xff")
    yield Picture("TIFF-12-bit", twelve, reason="12-bit pixels .* no standard range")
    for bits, name in ((8, "8"), (16, "16")):
        entries = [*tiff_entries(2, 1, bits=bits, strip=134, length=4), (339, 3, 1, 2)]
        yield Picture(
            f"TIFF-signed-{name}-bit", tiff(entries, bytes(4)), reason=f"signed {name}-bit pixels .* no standard range"
        )
    for bits in (64, 7, 0):
        yield Picture(
            f"TIFF-{bits}-bit", tiff(tiff_entries(4, 4, bits=bits, strip=122, length=128), bytes(128)), reason=NOT_WHOLE
        )


def _pngs() -> Iterator[Picture]:
    good = encode(noise(), "PNG")
    start = good.index(b"IDAT") + 4
    row = bytes([0, *RED])
    for name, data in {
        "header-checksum": replaced(good, 29, b"\0\0\0\0"),
        "signature-after-line-ending-conversion": good.replace(b"\r\n", b"\n", 1),
        "data-overwritten": replaced(good, start + 500, b"\xff" * 300),
        "data-zeroed": replaced(good, start + 2, bytes(2000)),
        "data-no-zlib": replaced(good, start, b"\0\0"),
        "depth-3": png(1, 1, 3, 2, row),
        "colour-type-5": png(1, 1, 8, 5, row),
        "compression-1": png(1, 1, 8, 2, row)[:26] + b"\1" + png(1, 1, 8, 2, row)[27:],
        "filter-9": png(1, 2, 8, 2, bytes([9, *RED, 9, *RED])),
        "header-missing": good[:8] + good[33:],
        "header-short": good[:8] + png_chunk(b"IHDR", b"\0\0\0\1") + good[33:],
        "wrong-checksum-of-a-comment": good[:33] + png_chunk(b"tEXt", b"key\0value")[:-1] + b"\0" + good[33:],
        "empty-data": png(4, 4, 8, 2, b""),
        "animation-control-broken": good[:33] + png_chunk(b"acTL", b"\0\0") + good[33:],
    }.items():
        yield Picture(f"PNG-{name}", data, reason=NOT_WHOLE)


def _jpegs() -> Iterator[Picture]:
    good = encode(noise(), "JPEG", quality=95)
    frame, scan, tables = good.index(b"\xff\xc0"), good.index(b"\xff\xda"), good.index(b"\xff\xc4")
    for name, data in {
        "start-and-end-alone": b"\xff\xd8\xff\xd9",
        "start-alone": b"\xff\xd8\xff",
        "no-frame": good[:frame] + good[tables:],
        "no-end-marker": good[:-2],
        "no-scan": good[:scan] + b"\xff\xd9",
        "no-components": replaced(good, frame + 9, b"\0"),
        "seven-components": replaced(good, frame + 9, b"\7"),
        "twelve-bits": replaced(good, frame + 4, b"\x0c"),
        "lossless-frame": replaced(good, frame + 1, b"\xc3"),
        "sampling-of-zero": replaced(good, frame + 11, b"\0"),
        "segment-longer-than-the-file": good[:2] + b"\xff\xe0\xff\xff" + good[2:],
        "first-bytes-lost": good[2:],
        "text-in-front": b"HTTP/1.1 200 OK\r\n\r\n" + good,
        "segments-without-end": b"\xff\xd8" + jpeg_segment(0xE0, b"x") * 2000,
    }.items():
        yield Picture(f"JPEG-{name}", data, reason=NOT_WHOLE)


def _gifs() -> Iterator[Picture]:
    good = encode(noise()[:, :, 0], "GIF")
    image = good.index(b",", 13 + 3 * 256)
    for name, data in {
        "no-frame": good[:image] + b";",
        "code-size-13": replaced(good, image + 10, b"\x0d"),
        "frame-outside-of-its-screen": replaced(good, image + 1, struct.pack("<HH", 60000, 60000)),
        "frame-without-data": good[: image + 11] + b"\0;",
        "data-overwritten": replaced(good, image + 20, b"\xff" * 600),
        "palette-cut": good[:200],
        "version-90x": replaced(good, 3, b"90x"),
    }.items():
        yield Picture(f"GIF-{name}", data, reason=f"{NOT_WHOLE}|{TOO_LARGE}")


def _tiffs() -> Iterator[Picture]:
    grey = bytes(16)
    entries = tiff_entries(4, 4, strip=122, length=16)
    for name, data in {
        "directory-beyond-the-end": b"II*\0\xff\xff\xff\x7f" + grey,
        "directory-of-65535-entries": b"II*\0\x08\0\0\0\xff\xff" + bytes(100),
        "no-entries": tiff([], grey),
        "no-strips": tiff([entry for entry in entries if entry[0] not in (273, 279)], grey),
        "no-width": tiff([entry for entry in entries if entry[0] != 256], grey),
        "unknown-compression": tiff(tiff_entries(4, 4, compression=9999, strip=122, length=16), grey),
        "strip-beyond-the-end": tiff(tiff_entries(4, 4, strip=10**9, length=16), grey),
        "strip-too-short": tiff(tiff_entries(40, 40, strip=122, length=16), grey),
        "broken-deflate": tiff(tiff_entries(4, 4, compression=8, strip=122, length=16), b"\xff" * 16),
        "broken-lzw": tiff(tiff_entries(4, 4, compression=5, strip=122, length=16), b"\xff" * 16),
        "width-as-text": tiff([(256, 2, 4, 0x41414141), *entries[1:]], grey),
        "big-tiff-cut": b"II+\0\x08\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f",
    }.items():
        yield Picture(f"TIFF-{name}", data, reason=f"{NOT_WHOLE}|no pixels")


def _others() -> Iterator[Picture]:
    bmp = encode(noise(), "BMP")
    webp = encode(noise(), "WEBP", lossless=True)
    avif = encode(noise(), "AVIF", quality=90)
    for name, data in {
        "BMP-7-bits": replaced(bmp, 28, struct.pack("<H", 7)),
        "BMP-unknown-compression": replaced(bmp, 30, struct.pack("<I", 99)),
        "BMP-header-of-9-bytes": replaced(bmp, 14, struct.pack("<I", 9)),
        "BMP-palette-of-4-billion": replaced(replaced(bmp, 28, struct.pack("<H", 8)), 46, struct.pack("<I", 2**32 - 1)),
        "BMP-data-beyond-the-end": replaced(bmp, 10, struct.pack("<I", 10**8)),
        "WEBP-size-of-zero": replaced(webp, 4, bytes(4)),
        "WEBP-no-frame": _riff(b"VP8X" + struct.pack("<IB3x", 10, 0) + b"\x0f\0\0" * 2),
        "WEBP-unknown-chunk-alone": _riff(b"ABCD" + struct.pack("<I", 4) + b"data"),
        "WEBP-data-overwritten": replaced(webp, 40, b"\xff" * 400),
        "WEBP-signature-of-no-picture": b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(100),
        "AVIF-boxes-zeroed": replaced(avif, 40, bytes(100)),
        "AVIF-brand-alone": avif[: avif.index(b"meta") - 4],
        "AVIF-data-zeroed": avif[: avif.index(b"mdat") + 4] + bytes(len(avif) - avif.index(b"mdat") - 4),
    }.items():
        yield Picture(name, data, reason=f"{NOT_WHOLE}|no pixels|{TOO_LARGE}")
    yield Picture(
        "PNG-called-flat-red-and-cut-by-a-byte-of-data",
        _without_last_data_byte(encode(flat(RED, 9, 9), "PNG")),
        reason=NOT_WHOLE,
    )


def _without_last_data_byte(data: bytes) -> bytes:
    start = data.index(b"IDAT") - 4
    length = struct.unpack(">I", data[start : start + 4])[0]
    # Four bytes of checksum and one of compressed pixels.
    return data[:start] + png_chunk(b"IDAT", data[start + 8 : start + 8 + length - 5]) + png_chunk(b"IEND", b"")
