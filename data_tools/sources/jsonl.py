"""Reading files line by line in bounded memory, and JSONL: lines of the project's own schema, or of any columns."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError
from pydantic_core import from_json

from data_tools.sources.base import Paths, SourceRecord, file_identity, input_files, left_in_folders
from data_tools.sources.values import RAW_CHARACTERS, Row
from pdfx.data.schema import Record, explain, json_problem
from pdfx.errors import UserError, shortened
from pdfx.host.files import file_stamp
from pdfx.host.reading import parse_json

JSONL_ENDINGS = (".jsonl", ".jsonl.gz")
LINE_LIMIT = 1 << 26
"""Bytes of the longest line that is read; a longer one is most often a file that is not text at all."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_SAMPLED_LINES = 1000
_COUNTED_BYTES = 1 << 30
"""JSONL files of more bytes than this in all are not counted beforehand."""


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
def open_input(path: Path) -> Iterator[BufferedIOBase]:
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


def bounded_lines(stream: BufferedIOBase) -> Iterator[tuple[bytes, bool]]:
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


class JsonlSource:
    """Records of ``pdfx.data.schema.Record``, one per line; blank lines are skipped.

    Args:
        paths: a file, several files, or a directory of ``.jsonl`` and ``.jsonl.gz`` files.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """

    def __init__(self, paths: Paths):
        self.files = input_files(paths, JSONL_ENDINGS)
        self.left = left_in_folders(paths, self.files)

    def identity(self) -> dict:
        return {"format": "jsonl", "files": file_identity(self.files)}

    def total(self) -> int | None:
        return _count_lines(self.files)

    def notes(self) -> list[str]:
        return self.left

    def records(self, start: int = 0) -> Iterator[SourceRecord]:
        return map(_to_record, read_lines(self.files, start))


def _to_record(line: Line) -> SourceRecord:
    if line.problem is not None:
        return SourceRecord(line.origin, problem=line.problem, raw=line.raw)
    try:
        record = Record.model_validate_json(line.data)
        parse_json(line.data)
        return SourceRecord(line.origin, record, raw=line.raw)
    except ValidationError as error:
        return SourceRecord(line.origin, problem=explain(error).removesuffix("."), raw=line.raw)
    except ValueError as error:
        return SourceRecord(line.origin, problem=str(error), raw=line.raw)


class JsonlRows:
    """Implements ``values.Rows``. ``columns`` are the keys of the first thousand lines."""

    remarks: list[str] = []
    left: list[str] = []

    def __init__(self, files: list[Path]):
        self.files = files
        self.columns = _scan(files)[0]
        self._keys = dict.fromkeys(self.columns)

    def total(self) -> int | None:
        return _count_lines(self.files)

    def read(self, start: int = 0, columns: list[str] | None = None) -> Iterator[Row]:
        for row in map(_to_row, read_lines(self.files, start)):
            self._keys |= dict.fromkeys(row.values or ())
            yield row

    @property
    def all_columns(self) -> list[str]:
        return list(self._keys)


def _count_lines(files: list[Path]) -> int | None:
    """How many lines ``read_lines`` yields; None if counting them would mean unpacking or reading very much."""
    return _scan(files)[1] if is_cheap_to_read(files, _COUNTED_BYTES) else None


def _scan(files: list[Path]) -> tuple[list[str], int]:
    """The keys of the first lines, and how many lines there are, if it is cheap to know. Files that have not changed
    since they were scanned are not read again."""
    return _scan_once(tuple(files), tuple(map(file_stamp, files)))


@lru_cache(maxsize=4)
def _scan_once(files: tuple[Path, ...], stamps: tuple[str, ...]) -> tuple[list[str], int]:
    keys: dict[str, None] = {}
    count = 0
    most = None if is_cheap_to_read(files, _COUNTED_BYTES) else _SAMPLED_LINES
    for line in islice(read_lines(files), most):
        if count < _SAMPLED_LINES:
            keys |= dict.fromkeys(_to_row(line).values or ())
        count += 1
    return list(keys), count


def _to_row(line: Line) -> Row:
    if line.problem is not None:
        return Row(line.origin, None, line.problem, line.raw)
    try:
        values = from_json(line.data)
    except ValueError as error:
        return Row(line.origin, None, json_problem(str(error)), line.raw)
    if not isinstance(values, dict):
        return Row(line.origin, None, "it is not a JSON object, which stands in braces", line.raw)
    return Row(line.origin, values, None, line.raw)
