"""What the errors of remote file systems mean: whether trying again can help, and a few words for a sentence.

Known by their attributes and the names of their classes, so that none of the packages that define them is imported.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus

_TIMEOUTS = (TimeoutError, asyncio.TimeoutError)  # one and the same from Python 3.11 on
_TRANSIENT_STATUS = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
_PERMANENT = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ssl.SSLCertVerificationError,
)
_TRANSIENT_NAMES = {
    "ClientConnectionError",  # aiohttp: refused, reset, ended early
    "ClientPayloadError",  # aiohttp: the body ended early
    "HTTPClientError",  # botocore: connections and their time limits
    "IncompleteReadError",  # botocore: the body ended early
    "ResponseParserError",  # botocore: a busy server's answer that is not XML
}
"""Of aiohttp and botocore, whose classes are not all OSErrors."""
_PIECE = 1 << 20


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: time-outs, broken connections, busy or failing servers."""
    status = status_of(error)
    if status is not None:
        return status >= 500 or status in _TRANSIENT_STATUS
    causes = list(_chain(error))
    if any(isinstance(cause, _PERMANENT) for cause in causes):
        return False
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    return bool(names & _TRANSIENT_NAMES) or any(isinstance(cause, (OSError, EOFError, *_TIMEOUTS)) for cause in causes)


def is_missing(error: BaseException) -> bool:
    """Whether the error says that there is no such file."""
    status = status_of(error)
    return status == HTTPStatus.NOT_FOUND if status is not None else isinstance(error, FileNotFoundError)


def reason_of(error: BaseException, timeout_seconds: float) -> str:
    """A few words."""
    if is_missing(error):
        return "it is not there"
    status = status_of(error)
    if status is not None:
        known = status in HTTPStatus.__members__.values()
        return f"its server answered with status {status}" + (f", {HTTPStatus(status).phrase}" if known else "")
    if isinstance(error, _TIMEOUTS) and not error.args:
        return f"no answer came within {timeout_seconds:g} seconds"
    text = " ".join(str(error).split())[:300].rstrip(".")
    plain = isinstance(error, (EOFError, ValueError)) and text
    return text if plain else f"{type(error).__name__}: {text}".removesuffix(": ")


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, if it is known."""
    for cause in _chain(error):
        response = getattr(cause, "response", None)
        status = getattr(cause, "status", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status is None and cause is error:
            # gcsfs calls it so; among the causes of aiohttp's errors the same name means something else.
            status = getattr(cause, "code", None)
        if isinstance(status, int) and 300 <= status < 600:
            return status
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


class ReplacedError(Exception):
    """A file is not the one that was seen first; the message is the part of a sentence that says how that shows."""


class Sightings:
    """What servers said about each file at first sight. Travels to other processes."""

    def __init__(self) -> None:
        self._first: dict[str, dict[str, str | int]] = {}

    def check(self, file: str, **said: str | int | None) -> None:
        """Raises ReplacedError if the server once said something else; what it leaves out (None) is not compared."""
        first = self._first.setdefault(file, {})
        for name, value in said.items():
            if value is not None and first.setdefault(name, value) != value:
                raise ReplacedError(
                    f"its {name.replace('_', '-')} was {str(first[name])[:80]} and is {str(value)[:80]}"
                )


async def read_at_most(read: Callable[[int], Awaitable[bytes]], limit: int, announced: int | None) -> bytes:
    """A body of at most ``limit`` bytes. Raises ValueError as soon as it is known to be longer."""
    pieces, size = [], 0
    while max(size, announced or 0) <= limit and (piece := await read(_PIECE)):
        pieces.append(piece)
        size += len(piece)
    if max(size, announced or 0) > limit:
        raise ValueError(f"{max(size, announced or 0)} bytes came where {limit} were asked for")
    return b"".join(pieces)
