"""The formats that shards are built from, by name. A format's module is imported when it is used."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pdfx.errors import UserError

from .base import Source
from .files import has_ending


@dataclass(frozen=True)
class Format:
    """A way to lay records out.

    Attributes:
        summary: what it is, in a few words.
        recognises: whether a path looks like it, for ``auto``. The formats are asked in the order of ``FORMATS``.
        open: gives the source of a path; further arguments are the format's options, strings.
    """

    summary: str
    recognises: Callable[[Path], bool]
    open: Callable[..., Source]


def open_source(name: str, path: Path, options: Mapping[str, str] | None = None) -> Source:
    """The source at ``path``.

    Args:
        name: one of ``FORMATS``, or ``auto``: guessed from the path and what it holds.

    Raises:
        UserError: there is no such path, format or option, or what the source says.
    """
    if not path.exists():
        raise UserError(f"There is no input {path}; name a file or a directory of records.")
    format = FORMATS[_guess(path) if name == "auto" else _known(name)]
    known = list(inspect.signature(format.open).parameters)[1:]
    for option in options or {}:
        if option not in known:
            raise UserError(f"The format has no option '{option}'; it has {', '.join(known) or 'none'}.")
    return format.open(path, **(options or {}))


def _known(name: str) -> str:
    if name in FORMATS:
        return name
    nearest = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0.0)[0]
    raise UserError(f"Unknown format '{name}'; did you mean '{nearest}'? There are auto, {', '.join(FORMATS)}.")


def _guess(path: Path) -> str:
    for name, format in FORMATS.items():
        if format.recognises(path):
            return name
    raise UserError(f"The format of {path} cannot be told from it; give it with --format: {', '.join(FORMATS)}.")


def _is_jsonl(path: Path) -> bool:
    from .lines import JSONL_ENDINGS

    files = path.iterdir() if path.is_dir() else [path]
    return any(has_ending(file, JSONL_ENDINGS) for file in files)


def _open_jsonl(path: Path) -> Source:
    from .jsonl import JsonlSource

    return JsonlSource(path)


FORMATS: dict[str, Format] = {
    "jsonl": Format("one record per line, with the project's own keys (.jsonl, .jsonl.gz)", _is_jsonl, _open_jsonl),
}
