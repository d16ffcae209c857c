"""What the answers of servers are held to: no more bytes than were asked for, of files that stay the ones that were
seen first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

_PIECE = 1 << 20


class ReplacedError(Exception):
    """A file is not the one any more that was seen first; the message is the part of a sentence that says how that
    shows."""


class Sightings:
    """What servers said about each file at first sight. Travels to other processes."""

    def __init__(self):
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
