"""HTML pages that hold everything they show: a template filled in, and pictures as data URIs."""

from __future__ import annotations

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
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


def render_page(package: str, template: str, **values: Any) -> str:
    """A page from a template beside the modules of ``package``. Every value is escaped."""
    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
