"""Telling URLs from local paths, and what of a URL may be shown."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")
HTTP = ("http", "https")


def is_url(place: str | Path) -> bool:
    """Whether a place is for fsspec."""
    return isinstance(place, str) and _URL.match(place) is not None


def protocol_of(url: str) -> str:
    """``s3`` of ``s3://bucket``, for example."""
    return url.partition("://")[0].lower()


def split_query(url: str) -> tuple[str, str]:
    """An HTTP URL before its query, and the query with its question mark. Elsewhere a question mark is part of a name."""
    base, question, query = url.partition("?") if protocol_of(url) in HTTP else (url, "", "")
    return base, question + query


def without_secrets(place: str) -> str:
    """A URL without the query and without the name and password that may stand in it; a local path as it is."""
    base, _ = split_query(place)
    if not is_url(base) or "@" not in urlsplit(base).netloc:
        return base
    head, _, rest = base.partition("://")
    return f"{head}://{rest.partition('@')[2]}"
