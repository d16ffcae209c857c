"""Telling URLs from local paths, and what of a URL may be shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")
_ANYWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)[^\s'\"<>]*")
_USER = re.compile(r"://(?:[^/?#]*@|[^/?#@]*:(?!\d*(?:[/?#]|$))[^?#]*@)")
"""A name and password, also one with a slash or a second @ in it, for which URLs have no room."""
_HTTP_REST = re.compile(r"[?#].*", re.DOTALL)
_REST = re.compile(r"\?[^/]*=.*", re.DOTALL)
HTTP = ("http", "https")


def is_url(place: str | Path) -> bool:
    """Whether a place is for fsspec."""
    return isinstance(place, str) and _URL.match(place) is not None


def protocol_of(url: str) -> str:
    """``s3`` of ``s3://bucket``, for example."""
    return url.partition("://")[0].lower()


def split_query(url: str) -> tuple[str, str]:
    """An HTTP URL before its query, and the query with its question mark, which elsewhere is part of a name."""
    base, question, query = url.partition("?") if protocol_of(url) in HTTP else (url, "", "")
    return base, question + query


def without_secrets(place: str) -> str:
    """A URL, or a chain of them, without query, name and password; a local path as it is."""
    return "::".join(map(_bare, place.split("::"))) if is_url(place.strip()) else place


def _bare(url: str) -> str:
    if "://" not in url:
        return url
    return (_HTTP_REST if protocol_of(url.strip()) in HTTP else _REST).sub("", _USER.sub("://", url))


def scrubbed(value: Any) -> Any:
    """A message, or plain values, without the secrets of the URLs in it."""
    if isinstance(value, dict):
        return {key: scrubbed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrubbed(item) for item in value]
    return _ANYWHERE.sub(lambda found: without_secrets(found[0]), value) if isinstance(value, str) else value
