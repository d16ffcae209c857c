"""HTTP through fsspec: proves that a range is what was sent, of the same file as before; no secrets for other hosts."""

from __future__ import annotations

import re
import weakref
from typing import Any

import aiohttp
import yarl
from fsspec.implementations.http import HTTPFileSystem

from pdfx.data.storage.remote_errors import Sightings, read_at_most
from pdfx.host.reading import SMALL
from pdfx.host.urls import HTTP

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_IGNORED = (
    "its server sends whole files where a part is asked for, so samples cannot be read one by one; use a "
    "server with range requests, or a local copy"
)
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 10
_FOR_ALL_HOSTS = ("ssl", "proxy", "timeout", "allow_redirects", "auto_decompress")
"""Options that hold no secret of a single host."""


class RangedHTTP(HTTPFileSystem):
    """Refuses, from the headers alone, another range than was asked for. Configured as fsspec's own."""

    sightings: Sightings
    _other_hosts: aiohttp.ClientSession | None = None

    async def _cat_file(
        self, url: str, start: int | None = None, end: int | None = None, limit: int = SMALL, **options: Any
    ) -> bytes:
        """A whole file of at most ``limit`` bytes, or its bytes from ``start`` to ``end``. Raises ValueError if the
        server sends other bytes, and ReplacedError if it is another file than before."""
        async with await self._get(url, start, end, **options) as response:
            self._check_file(response, url, None if end is None else self._sent_range(response)[2])
            self._raise_not_found_for_status(response, url)
            if end is not None and self._sent_range(response)[:2] != (start, end - 1):
                raise ValueError(
                    f"its server sent bytes {response.headers.get('Content-Range')} where {start}-{end - 1} were "
                    "asked for"
                )
            return await read_at_most(
                response.content.read, limit if start is None or end is None else end - start, response.content_length
            )

    async def _info(self, url: str, **options: Any) -> dict:
        """Asks for the first byte: that shows the size, and works if HEAD requests are not allowed."""
        async with await self._get(url, 0, 1, **options) as response:
            if response.status != 416:
                self._raise_not_found_for_status(response, url)
            size = self._sent_range(response)[2]
            self._check_file(response, url, size)
            return {"name": url, "size": size, "type": "file"}

    def _check_file(self, response: aiohttp.ClientResponse, url: str, size: int | None) -> None:
        if response.status in (200, 206, 416):
            headers = response.headers
            self.sightings.check(url, size=size, ETag=headers.get("ETag"), Last_Modified=headers.get("Last-Modified"))
            if headers.get("Content-Encoding", "identity").lower() != "identity":
                raise ValueError(
                    "its server compresses what it sends, so that no byte range is what it seems; switch that off, "
                    "or use a local copy"
                )

    async def _get(self, url: str, start: int | None, end: int | None, **options: Any) -> Any:
        options = {**self.kwargs, **options, "allow_redirects": False, "auto_decompress": False}
        # Compressed on its way, a file would have other ranges.
        own = {"Accept-Encoding": "identity"} | ({} if end is None else {"Range": f"bytes={start}-{end - 1}"})
        headers, session, place = {**options.pop("headers", {}), **own}, await self.set_session(), self.encode_url(url)
        for _ in range(_MOST_REDIRECTS):
            response = await session.get(place, headers=headers, **options)
            if response.status not in _REDIRECTS or "Location" not in response.headers:
                return response
            response.release()
            target = place.join(yarl.URL(response.headers["Location"]))
            if target.scheme not in HTTP:
                raise ValueError("its server redirects to what is not HTTP")
            if target.origin() != place.origin():
                # Headers, cookies and passwords were given for the first host alone.
                headers, session, options = own, self._session_for_other_hosts(), _chosen(options, _FOR_ALL_HOSTS)
            elif target.user is None:
                target = target.with_user(place.user).with_password(place.password)
            place = target
        raise ValueError(f"its server redirects more than {_MOST_REDIRECTS} times")

    def _session_for_other_hosts(self) -> aiohttp.ClientSession:
        if self._other_hosts is None:
            self._other_hosts = aiohttp.ClientSession(**_chosen(self.client_kwargs, ("timeout", "trust_env")))
            weakref.finalize(self, self.close_session, self.loop, self._other_hosts)
        return self._other_hosts

    @staticmethod
    def _sent_range(response: Any) -> tuple[int | None, int | None, int | None]:
        """First and last byte that are sent, and the file's size; None for what is not given."""
        if response.status == 200 and response.headers.get("Content-Length") == "0":
            return None, None, 0
        if response.status == 200:
            raise ValueError(_IGNORED)
        match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        parts = match.groups() if match else (None, None, None)
        first, last, size = (int(part) if part and part != "*" else None for part in parts)
        return first, last, size


def _chosen(options: dict, names: tuple[str, ...]) -> dict:
    return {name: value for name, value in options.items() if name in names}
