"""Storing pictures smaller than they were given."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass

import PIL
from PIL import Image

from pdfx.errors import UserError
from pdfx.model.pictures import ImageError

EXTENSIONS = {"jpeg": "jpg", "webp": "webp", "png": "png"}
"""Formats that pictures can be stored in, with the extension of their members."""

_KEPT_FORMATS = {"jpg": "jpeg", "webp": "webp"}


@dataclass(frozen=True)
class Encoding:
    """How pictures are stored. By default their bytes stay as they are given.

    What is encoded anew is upright (its EXIF orientation is applied), RGB and without metadata.

    Attributes:
        resize: pictures whose longer side has more pixels are shrunk to so many.
        format: every picture is encoded anew in this one of ``EXTENSIONS``. None: only those that are shrunk are, JPEG
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
        is_shrunk = self.resize is not None and max(image.size) > self.resize
        if not is_shrunk and self.format is None:
            return None
        if is_shrunk:
            image.thumbnail((self.resize, self.resize), Image.Resampling.LANCZOS)
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
