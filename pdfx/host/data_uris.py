"""Pictures as data URIs, for HTML pages that hold everything they show."""

from __future__ import annotations

import base64
import io

from PIL import Image


def data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def thumbnail(image: Image.Image, longest: int) -> str:
    """A small WebP of a picture, whose longer side has at most ``longest`` pixels, as a data URI."""
    small = image.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=80)
    return data_uri("image/webp", stream.getvalue())
