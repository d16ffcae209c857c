"""Errors that a user can cure; the command line prints them as one sentence without a stack trace."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pdfx.host.urls import scrubbed

_MESSAGE_CHARACTERS = 4000


class UserError(RuntimeError):
    """A mistake in what the user brought (data, checkpoint, model); the message names the thing and the cure. It is
    bounded, whatever names it quotes, and holds no secrets of URLs."""

    def __init__(self, message: str):
        super().__init__(shortened(scrubbed(message), _MESSAGE_CHARACTERS, _MESSAGE_CHARACTERS // 2))


def shortened(text: str, most: int, at_end: int = 0) -> str:
    """A text of at most ``most`` characters and the sign that some are left out: its beginning, and so many of its
    end."""
    return text if len(text) <= most else f"{text[: most - at_end]}...{text[len(text) - at_end :]}"


def in_short(error: Exception) -> str:
    """What a library's error says, in one line of at most 400 characters; some list all that they know."""
    return shortened(" ".join(str(error).split()), 400)


def nearest(name: str, known: Iterable[str], least: float = 0.0) -> str | None:
    """The known name that is most like a given one, for "did you mean"; None if none is by ``least``, from 0 to 1."""
    return next(iter(difflib.get_close_matches(name[:200], list(known), n=1, cutoff=least)), None)
