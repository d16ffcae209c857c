"""HTTP through fsspec, with the proof that a range is what was sent."""

from __future__ import annotations

import re
from typing import Any

from fsspec.implementations.http import HTTPFileSystem

_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_IGNORED = "its server sends whole files where a part is asked for, so samples cannot be read one by one; use a server with range requests, or a local copy"


class RangedHTTP(HTTPFileSystem):
    """Refuses, from the headers alone, an answer that is another part of the file than was asked for. Configured as fsspec's own for http and https."""

    async def _cat_file(self, url: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """A whole file, or its bytes from ``start`` to ``end``.

        Raises:
            ValueError: the server sent another range.
        """
        async with await self._get(url, start, end, **options) as response:
            self._raise_not_found_for_status(response, url)
            if end is not None and self._sent_range(response)[:2] != (start, end - 1):
                raise ValueError(f"its server sent bytes {response.headers.get('Content-Range')} where {start}-{end - 1} were asked for")
            return await response.read()

    async def _info(self, url: str, **options: Any) -> dict:
        """Asks for the first byte: that tells the size, and works where HEAD requests are not allowed."""
        async with await self._get(url, 0, 1, **options) as response:
            if response.status != 416:
                self._raise_not_found_for_status(response, url)
            return {"name": url, "size": self._sent_range(response)[2], "type": "file"}

    async def _get(self, url: str, start: int | None, end: int | None, **options: Any) -> Any:
        options = {**self.kwargs, **options}
        # Compressed on its way, a file would have other ranges.
        headers = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
        if end is not None:
            headers["Range"] = f"bytes={start}-{end - 1}"
        session = await self.set_session()
        return await session.get(self.encode_url(url), headers=headers, **options)

    @staticmethod
    def _sent_range(response: Any) -> tuple[int | None, int | None, int | None]:
        """First and last byte that are sent, and the file's size; None for what is not told."""
        if response.status == 200 and response.headers.get("Content-Length") == "0":
            return None, None, 0
        if response.status == 200:
            raise ValueError(_IGNORED)
        match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        first, last, size = match.groups() if match else (None, None, None)
        return tuple(None if part in (None, "*") else int(part) for part in (first, last, size))
