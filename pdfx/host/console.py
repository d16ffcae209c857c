"""What programs print: streams that survive lost readers and odd characters, and consoles that print text as it is."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rich.console import Console

ShowProgress = Callable[[int, int | None], None]
"""Called with (items done, items in all or None)."""


class _Output(io.FileIO):
    """A standard stream. Once it cannot be written to, its descriptor is /dev/null, also for libraries in C."""

    lasting = False
    """Whether this process continues without its stdout."""

    def __init__(self, number: int, title: str):
        super().__init__(number, "w", closefd=False)
        self.title = title

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if self.title == "<stdout>" and not self.lasting:
                if isinstance(error, BrokenPipeError):
                    # The reader has seen enough: end as other programs do, without a word.
                    raise SystemExit(128 + signal.SIGPIPE) from None
                error.filename = self.title
                raise
            if self.title == "<stdout>":
                print(
                    f"{self.title} can no longer be written to ({error.strerror}); this process continues without it.",
                    file=sys.stderr,
                    flush=True,
                )
            return len(data)


def open_streams() -> None:
    """Make stdout and stderr ones that print what their encoding lacks as escapes, that name themselves in errors, and
    that a lost reader does not break.

    Streams that a caller has put in their place are left alone.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) < 3:
        # A file that is opened later must not get the number of a stream that was closed, and with it what is printed.
        os.set_inheritable(null, True)
    os.close(null)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):
            encoding, lines = (stream.encoding, stream.line_buffering) if stream else ("utf-8", True)
            output = io.BufferedWriter(_Output(number, f"<{name}>"))
            setattr(
                sys, name, io.TextIOWrapper(output, encoding, "backslashreplace", line_buffering=lines or number == 2)
            )


def outlive_stdout() -> None:
    """From now on this process continues if its stdout is lost; tools end then."""
    _Output.lasting = True


def print_last(text: str) -> None:
    """Print a log's last entry to stderr. What is written there afterwards is dropped, also by threads of libraries in
    C, such as c10d's warning of a connection that broke."""
    sys.stderr.flush()
    number = sys.stderr.fileno()
    kept, null = os.dup(number), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
    with suppress(OSError), open(kept, "w", encoding=sys.stderr.encoding, errors="backslashreplace") as stream:
        print(text, file=stream)


def console(file=None, **options) -> Console:
    """A console that takes no part of a text for markup: names and paths may hold brackets and colons."""
    return Console(file=file, markup=False, emoji=False, highlight=False, **options)
