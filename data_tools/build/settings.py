"""The settings of a build of shards, and how it stores pictures."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, field
from pathlib import Path

import PIL
from PIL import Image

from pdfx.errors import UserError
from pdfx.model.pictures import MAX_IMAGE_PIXELS, ImageError

EXTENSIONS = {"jpeg": "jpg", "webp": "webp", "png": "png"}
"""Formats that pictures can be stored in, with the extension of their members."""

_KEPT_FORMATS = {"jpg": "jpeg", "webp": "webp"}
LEAKS = ("query", "target", "image")
"""What may be compared with evaluation sets."""


@dataclass(frozen=True)
class Encoding:
    """How pictures are stored. By default their bytes stay as they are given.

    What is encoded again is upright (its EXIF orientation is applied), RGB and without metadata.

    Attributes:
        resize: pictures whose longer side has more pixels are shrunk to so many.
        format: every picture is encoded again in this one of ``EXTENSIONS``. None: only those that are shrunk are, JPEG
            and WebP as such and all others as PNG.
        quality: of JPEG and WebP, 1 to 100, as Pillow counts it.

    Raises:
        UserError: a value is out of range.
    """

    resize: int | None = None
    format: str | None = None
    quality: int = 90

    def __post_init__(self):
        if self.resize is not None and self.resize < 1:
            raise UserError(f"resize is {self.resize} and must be 1 or more (pixels of the longer side).")
        if self.format is not None and self.format not in EXTENSIONS:
            raise UserError(f"The format of pictures is '{self.format}' and must be one of {', '.join(EXTENSIONS)}.")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality is {self.quality} and must be from 1 to 100.")
        if self.quality != Encoding.quality and self.resize is None and self.format is None:
            raise UserError(
                "quality has no effect, because no picture is re-encoded; give --image-format or --resize (format, "
                "resize) too."
            )

    def identity(self) -> dict:
        """What decides the stored bytes; another Pillow may write other ones."""
        if self.resize is None and self.format is None:
            return {"resize": None, "format": None}
        return {**asdict(self), "pillow": PIL.__version__}

    def encode(self, image: Image.Image, extension: str) -> tuple[bytes, str, tuple[int, int]] | None:
        """Bytes, extension and (width, height) of what is stored in place of a picture; None if its given bytes are.

        Args:
            image: what ``decode_image`` gave; it is changed.
            extension: the one that fits the given bytes.

        Raises:
            ImageError: the format cannot hold a picture of this size.
        """
        if self.resize is not None and max(image.size) > self.resize:
            image.thumbnail((self.resize, self.resize), Image.Resampling.LANCZOS)
        elif self.format is None:
            return None
        name = self.format or _KEPT_FORMATS.get(extension, "png")
        image.info.clear()
        stream = io.BytesIO()
        try:
            image.save(stream, name, quality=self.quality)
        except (OSError, ValueError) as error:
            raise ImageError(
                f"the picture of {image.width} x {image.height} pixels cannot be stored as {name} ({error})"
            ) from None
        return stream.getvalue(), EXTENSIONS[name], image.size


@dataclass(frozen=True)
class BuildSettings:
    """Settings of ``data_tools.build.builder.build``.

    Attributes:
        samples_per_shard, shard_bytes: a shard ends with the sample that makes it reach the one, or before the sample
            that would make it pass the other. A single sample of more than ``shard_bytes`` has a shard of its own.
        encoding: how pictures are stored.
        max_image_pixels: larger pictures are refused.
        deduplicate: leave out records whose query and target, texts and pictures, are those of an earlier record.
        evaluation: directories of shards that the records are compared with; or their addresses, as ``ShardedDataset``
            takes them.
        leaks: which of ``LEAKS`` are compared.
        drop_leaked: leave out the records that an evaluation set shares something with; otherwise they are only
            reported.
        max_bad_share: the build stops if more than this share of the records cannot be used; a single one is
            forgiven unless the share is 0.
        workers: processes that read and pack; with 0 and 1 this process does. Each imports the main script, which must
            guard its entry with ``if __name__ == "__main__":``.
        overwrite: delete an earlier build first.

    Raises:
        UserError: a value is out of range.
    """

    samples_per_shard: int = 10_000
    shard_bytes: int = 1_000_000_000
    encoding: Encoding = field(default_factory=Encoding)
    max_image_pixels: int = MAX_IMAGE_PIXELS
    deduplicate: bool = False
    evaluation: tuple[str | Path, ...] = ()
    leaks: tuple[str, ...] = LEAKS
    drop_leaked: bool = False
    max_bad_share: float = 0.01
    workers: int = 1
    overwrite: bool = False

    def __post_init__(self):
        for name in ("samples_per_shard", "shard_bytes", "max_image_pixels"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)} and must be 1 or more.")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"max_bad_share is {self.max_bad_share:g} and must be from 0 to 1.")
        if self.workers < 0:
            raise UserError(f"workers is {self.workers} and must be 0 or more.")
        for name in self.leaks:
            if name not in LEAKS:
                raise UserError(f"'{name}' cannot be compared with evaluation sets; choose among {', '.join(LEAKS)}.")
        if set(self.leaks) != set(LEAKS) and not self.evaluation:
            raise UserError("What is compared (--leak, leaks) has no effect without evaluation shards to compare with.")
        if self.drop_leaked and not self.evaluation:
            raise UserError("Leaked records can only be left out if evaluation shards are given to compare with.")

    def identity(self) -> dict:
        """Plain values of what decides the bytes that are written; the evaluation sets themselves are known by their
        fingerprints elsewhere."""
        names = ("samples_per_shard", "shard_bytes", "max_image_pixels", "deduplicate", "drop_leaked")
        kept = {name: getattr(self, name) for name in names}
        return {**kept, **self.encoding.identity(), "leaks": sorted(self.leaks)}
