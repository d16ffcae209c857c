"""The rows of CSV and TSV files; every cell is text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pdfx.errors import UserError

from .files import has_ending
from .lines import bounded_lines, is_cheap_to_read, open_input, shortened, too_long
from .rows import Row, common_columns

_CELL_LIMIT = 1 << 24
"""Characters of the longest cell; a longer one is most often an open quotation mark that swallows the rows after it."""
_COUNTED_BYTES = 1 << 28
_TAB_ENDINGS = (".tsv", ".tsv.gz")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class DelimitedRows:
    """Implements ``rows.Rows``. The first row of each file names its columns.

    Raises:
        UserError: a file is empty, is no UTF-8, or names a column twice; or the delimiter is no single character.
    """

    def __init__(self, files: list[Path], delimiter: str | None = None, quotes: bool = True):
        if delimiter is not None and len(delimiter) != 1:
            raise UserError(f"The delimiter '{delimiter}' must be one character.")
        self.files, self.delimiter, self.quotes = files, delimiter, quotes
        self.columns = common_columns([self._header(path) for path in files])

    def total(self) -> int | None:
        return sum(1 for _ in self.read()) if is_cheap_to_read(self.files, _COUNTED_BYTES) else None

    def read(self, start: int = 0, columns: list[str] | None = None) -> Iterator[Row]:
        seen = 0
        for path in self.files:
            for row in self._read_file(path):
                seen += 1
                if seen > start:
                    yield row

    def _header(self, path: Path) -> list[str]:
        with open_input(path) as stream:
            try:
                header = next(self._reader(_Lines(stream), path), [])
                "".join(header).encode()
            except (csv.Error, ValueError) as error:
                raise UserError(f"The first row of {path}, which names its columns, cannot be read ({error}); save it as UTF-8.") from None
        if not any(header):
            raise UserError(f"{path} has no first row that names its columns; add one.")
        for name in header:
            if header.count(name) > 1:
                raise UserError(f"The first row of {path} names the column '{name}' twice; rename one.")
        return header

    def _reader(self, lines: _Lines, path: Path):
        csv.field_size_limit(_CELL_LIMIT)
        delimiter = self.delimiter or ("\t" if has_ending(path, _TAB_ENDINGS) else ",")
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE, strict=True)

    def _read_file(self, path: Path) -> Iterator[Row]:
        with open_input(path) as stream:
            lines = _Lines(stream)
            reader = self._reader(lines, path)
            header = next(reader)
            while True:
                origin = f"{path} line {lines.number + 1}"
                try:
                    cells = next(reader)
                    "".join(cells).encode()
                except StopIteration:
                    return
                except csv.Error as error:
                    hint = "; if quotation marks are part of the text, read it with quotes=no" if self.quotes else ""
                    yield Row(origin, None, f"it is no valid row ({error}){hint}", lines.raw)
                except _LineTooLong as error:
                    yield Row(origin, None, str(error), lines.raw)
                except UnicodeEncodeError:
                    yield Row(origin, None, "it is no valid UTF-8", lines.raw)
                else:
                    if len(cells) == len(header):
                        yield Row(origin, dict(zip(header, cells, strict=True)), None, lines.raw)
                    elif cells:
                        yield Row(origin, None, f"it has {len(cells)} cells, and the first row names {len(header)} columns", lines.raw)


class _LineTooLong(ValueError):
    pass


class _Lines:
    """Lines for the csv reader. An object and no generator, because it goes on after it raised an error.

    Attributes:
        number: lines given so far.
        raw: the last one, as a quarantine file shows it.
    """

    def __init__(self, stream: BinaryIO):
        if stream.peek(2)[:2] in _UTF16_MARKS:
            raise ValueError("it is UTF-16")
        self._lines = bounded_lines(stream)
        self.number, self.raw = 0, ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        data, is_whole = next(self._lines)
        self.number += 1
        # Bytes that are no UTF-8 become characters that cannot be encoded again, by which their row is told.
        text = data.decode("utf-8", errors="surrogateescape")
        self.raw = shortened(data[:8000].decode("utf-8", errors="replace").strip())
        if not is_whole:
            raise _LineTooLong(too_long())
        return text
