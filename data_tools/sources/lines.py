"""Reading files line by line in bounded memory, whatever they hold."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pdfx.errors import UserError, shortened

JSONL_ENDINGS = (".jsonl", ".jsonl.gz")
LINE_LIMIT = 1 << 26
"""Bytes of the longest line that is read; a longer one is most often a file that is not text at all."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
RAW_CHARACTERS = 2000
"""What a quarantine file shows of a record, from its beginning."""


class Line(NamedTuple):
    """One line that is not blank.

    Attributes:
        origin: file and line number, for messages.
        data: its bytes without surrounding white space; of a line that is too long only the beginning.
        problem: the part of a sentence that says why the line cannot be used; None if it can.
    """

    origin: str
    data: bytes
    problem: str | None

    @property
    def raw(self) -> str:
        return shortened(self.data[: 4 * RAW_CHARACTERS].decode("utf-8", errors="replace"), RAW_CHARACTERS)


def read_lines(files: Sequence[Path], start: int = 0) -> Iterator[Line]:
    """The lines of all files that are not blank, from number ``start`` on (blank ones are not counted). Files that end
    in .gz are unpacked.

    Raises:
        UserError: a compressed file is damaged, so that what follows cannot be found.
    """
    seen = 0
    for path in files:
        with open_input(path) as stream:
            for number, (data, is_whole) in enumerate(bounded_lines(stream), start=1):
                data = data.strip()
                if is_whole and not data:
                    continue
                seen += 1
                if seen > start:
                    yield Line(f"{path} line {number}", data, None if is_whole else too_long())


def is_cheap_to_read(files: Sequence[Path], most_bytes: int) -> bool:
    return all(path.suffix != ".gz" for path in files) and sum(path.stat().st_size for path in files) <= most_bytes


@contextmanager
def open_input(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a text file, after its UTF-8 byte order mark if it has one, and unpacked if its name ends in .gz.

    Raises:
        UserError: it is UTF-16 (or begins with NUL bytes, as that does); or while it is read, a compressed file turns
            out to be damaged.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            start = stream.read(4)
            if start[:2] in _UTF16_MARKS or b"\0" in start:
                raise UserError(f"{path} cannot be read (it is UTF-16); save it as UTF-8.")
            stream.seek(len(_BYTE_ORDER_MARK) if start.startswith(_BYTE_ORDER_MARK) else 0)
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"The compressed file {path} is damaged ({error}); fetch or write it again.") from None


def bounded_lines(stream: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """(line, True), or (the beginning of a line that is too long, False). Lines end with ``\\n``, ``\\r\\n`` or
    ``\\r``, also if a file mixes these."""
    rest, is_skipped = b"", False
    while data := stream.readline(LINE_LIMIT):
        *lines, rest = (rest + data).splitlines(keepends=True)
        if rest.endswith(b"\n"):
            lines, rest = [*lines, rest], b""
        for line in lines:
            if not is_skipped:
                yield (line, True) if len(line) <= LINE_LIMIT else (line[: 4 * RAW_CHARACTERS], False)
            is_skipped = False
        if len(rest) >= LINE_LIMIT:
            if not is_skipped:
                yield rest[: 4 * RAW_CHARACTERS], False
            rest, is_skipped = b"", True
    if rest and not is_skipped:
        yield rest, True


def too_long() -> str:
    return f"it is a line of more than {LINE_LIMIT >> 20} MiB"
