"""Reading files line by line in bounded memory, whatever they hold."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pdfx.errors import UserError

JSONL_ENDINGS = (".jsonl", ".jsonl.gz")
LINE_LIMIT = 1 << 26
"""Bytes of the longest line that is read; a longer one is most often a file that is no JSONL at all."""
_COUNTED_BYTES = 1 << 30
"""Files of more bytes than this in all are not counted beforehand."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_RAW_CHARACTERS = 2000


class Line(NamedTuple):
    """One line that is not blank.

    Attributes:
        origin: file and line number, for messages.
        data: its bytes without surrounding white space; of a line that is too long only the beginning.
        problem: the part of a sentence that says why the line cannot be used; None where it can.
    """

    origin: str
    data: bytes
    problem: str | None

    @property
    def raw(self) -> str:
        return shortened(self.data[: 4 * _RAW_CHARACTERS].decode("utf-8", errors="replace"))


def shortened(text: str) -> str:
    """What a quarantine file shows of a record: its beginning."""
    return text if len(text) <= _RAW_CHARACTERS else f"{text[:_RAW_CHARACTERS]}..."


def read_lines(files: list[Path], start: int = 0) -> Iterator[Line]:
    """The lines of all files that are not blank, from number ``start`` on (blank ones are not counted). Files that end in .gz are unpacked.

    Raises:
        UserError: a compressed file is damaged, so that what follows cannot be found.
    """
    seen = 0
    for path in files:
        try:
            with _open(path) as stream:
                for number, (data, is_whole) in enumerate(_bounded_lines(stream), start=1):
                    data = data.removeprefix(_BYTE_ORDER_MARK).strip() if number == 1 else data.strip()
                    if is_whole and not data:
                        continue
                    seen += 1
                    if seen > start:
                        problem = None if is_whole else f"it is a line of more than {LINE_LIMIT >> 20} MiB"
                        yield Line(f"{path} line {number}", data, problem)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"The compressed file {path} is damaged ({error}); fetch or write it again.") from None


def count_lines(files: list[Path]) -> int | None:
    """How many lines ``read_lines`` yields; None where counting would mean unpacking or reading very much."""
    if any(path.suffix == ".gz" for path in files) or sum(path.stat().st_size for path in files) > _COUNTED_BYTES:
        return None
    return sum(1 for _ in read_lines(files))


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _bounded_lines(stream: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """(line, True), or (the beginning of a line that is too long, False)."""
    while data := stream.readline(LINE_LIMIT):
        if len(data) < LINE_LIMIT or data.endswith(b"\n"):
            yield data, True
            continue
        while (rest := stream.readline(LINE_LIMIT)) and not rest.endswith(b"\n"):
            pass
        yield data[: 4 * _RAW_CHARACTERS], False
