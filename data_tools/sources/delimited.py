"""The rows of CSV and TSV files; every cell is text."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.sources.base import RAW_CHARACTERS, has_ending
from data_tools.sources.jsonl import bounded_lines, is_cheap_to_read, open_input, too_long
from data_tools.sources.values import Row, any_columns, common_columns
from pdfx.errors import UserError, shortened

_CELL_LIMIT = 1 << 24
"""Characters of the longest cell, and about those that are looked at to find the end of a cell with quotation marks."""
_LINES_OF_A_ROW = 1000
"""A quotation mark that is not closed within so many lines is a stray one."""
_LINES_OF_PROSE = 5
"""In so few lines, all may have a row's number of commas by chance."""
_COUNTED_BYTES = 1 << 28
_TAB_ENDINGS = (".tsv", ".tsv.gz")
_OTHER_DELIMITERS = (";", "\t", "|")
_Parser = Callable[[Iterable[str]], Any]
"""From lines to a ``csv.reader``, whose class the library does not name."""
_NO_ROW, _STRAY = "it is not a valid row", "a quotation mark in it takes in"


class DelimitedRows:
    """Implements ``values.Rows``. The first row of each file names its columns.

    A cell in quotation marks may have several lines. A mark that is never closed, or whose cell takes in lines that are
    rows themselves, costs the row that it stands in; the lines after it are read.

    Raises:
        UserError: a file is empty, is not UTF-8, or names a column twice; or the delimiter is not a single character.
    """

    def __init__(self, files: list[Path], delimiter: str | None = None, quotes: bool = True):
        if delimiter is not None and len(delimiter) != 1:
            raise UserError(f"The delimiter '{delimiter}' must be one character.")
        self.files, self.delimiter, self.quotes = files, delimiter, quotes
        columns_of = [self._header(path) for path in files]
        self.columns, self.all_columns = common_columns(columns_of), any_columns(columns_of)
        self.remarks: list[str] = []
        self.left: list[str] = []

    def total(self) -> int | None:
        return sum(1 for _ in self.read()) if is_cheap_to_read(self.files, _COUNTED_BYTES) else None

    def read(self, start: int = 0, columns: list[str] | None = None) -> Iterator[Row]:
        self.remarks = []
        return islice((row for path in self.files for row in self._read_file(path)), start, None)

    def _header(self, path: Path) -> list[str]:
        with open_input(path) as stream:
            _, header, problem, *_ = next(self._records(path, stream), (1, [], None))
        if problem is not None:
            raise UserError(
                f"The first row of {path}, which names its columns, cannot be read ({problem}); save it as UTF-8, "
                "with quotation marks closed."
            )
        if not any(header):
            raise UserError(f"{path} has no first row that names its columns; add one.")
        for name in header:
            if header.count(name) > 1:
                raise UserError(f"The first row of {path} names the column '{shortened(name, 80)}' twice; rename one.")
        for other in _OTHER_DELIMITERS if len(header) == 1 and self.delimiter is None else ():
            if other in header[0]:
                raise UserError(
                    f"The first row of {path} is a single cell, '{shortened(header[0], 80)}'; name what separates "
                    f"cells with delimiter={other!r}."
                )
        return header

    def _read_file(self, path: Path) -> Iterator[Row]:
        with open_input(path) as stream:
            records = self._records(path, stream)
            header, several, first = next(records).cells, 0, 0
            for line, cells, problem, raw, lines in records:
                if problem is None and len(cells) != len(header):
                    problem = f"it has {len(cells)} cells, and the first row names {len(header)} columns"
                elif problem is None and cells == header:
                    problem = "it repeats the first row, which names the columns"
                values = dict(zip(header, cells, strict=True)) if problem is None else None
                yield Row(f"{path} line {line}", values, problem, raw)
                if lines > 1 and problem is None:
                    several, first = several + 1, first or line
        if several:
            remark = f"In {path}, {several} rows have cells of several lines; the first of them begins in line {first}."
            # A count beforehand reads them too.
            self.remarks = list(dict.fromkeys([*self.remarks, remark]))

    def _records(self, path: Path, stream: BufferedIOBase) -> Iterator[_Record]:
        """Every record that is not a blank line, the first row included."""
        csv.field_size_limit(_CELL_LIMIT)
        delimiter = self.delimiter or ("\t" if has_ending(path, _TAB_ENDINGS) else ",")
        parse = partial(
            csv.reader, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE, strict=True
        )
        lines, number, header = _Lines(stream), 1, None
        while lines.has_next():
            cells, problem, used = _parsed(lines, parse, header)
            text = "".join(lines.take(used))
            if problem is None and "\0" in text:
                problem = "it holds NUL bytes, so the file is damaged or is not text"
            if problem is not None and self.quotes and problem.startswith((_NO_ROW, _STRAY)):
                problem += "; if quotation marks are part of the text, read it with quotes=no"
            if cells or problem is not None or header is None:
                header = header or cells
                raw = text[:RAW_CHARACTERS].encode(errors="surrogateescape").decode(errors="replace").strip()
                yield _Record(number, cells, problem, raw, used)
            number += used


class _Record(NamedTuple):
    line: int
    cells: list[str]
    problem: str | None
    raw: str
    lines: int


class _Lines:
    """The lines of a stream, of which some can be looked at before they are taken."""

    def __init__(self, stream: BufferedIOBase):
        self._stream = bounded_lines(stream)
        self._held: deque[tuple[str, bool]] = deque()

    def has_next(self) -> bool:
        return bool(self._held) or self._hold()

    def is_too_long(self) -> bool:
        """Whether only the beginning of the next line is there."""
        return not self._held[0][1]

    def ahead(self) -> Iterator[str]:
        """The next lines, as many as one record may have."""
        number = characters = 0
        while (
            number < _LINES_OF_A_ROW
            and characters <= _CELL_LIMIT
            and (number < len(self._held) or self._hold())
            and self._held[number][1]
        ):
            yield self._held[number][0]
            characters += len(self._held[number][0])
            number += 1

    def take(self, count: int) -> list[str]:
        return [self._held.popleft()[0] for _ in range(count)]

    def _hold(self) -> bool:
        for data, is_whole in islice(self._stream, 1):
            # Bytes that are not UTF-8 become characters that cannot be encoded again, by which their row is known.
            self._held.append((data.decode("utf-8", errors="surrogateescape"), is_whole))
            return True
        return False


def _parsed(lines: _Lines, parse: _Parser, header: list[str] | None) -> tuple[list[str], str | None, int]:
    """The next record's cells, the part of a sentence that says why it cannot be used, and how many lines it takes."""
    if lines.is_too_long():
        return [], too_long(), 1
    reader = parse(lines.ahead())
    try:
        cells = next(reader)
        "".join(cells).encode()
    except csv.Error as error:
        reach = f", {reader.line_num - 1} lines after a quotation mark" if reader.line_num > 1 else ""
        return [], f"{_NO_ROW} ({error}{reach})", 1
    except UnicodeEncodeError:
        return [], "it is not valid UTF-8", reader.line_num
    if header is not None and reader.line_num > 1:
        inside = list(islice(lines.ahead(), 1, reader.line_num))
        rows = sum(_is_row(line, parse, header, may_be_prose=len(inside) <= _LINES_OF_PROSE) for line in inside)
        # Prose has a line that could be a row now and then; lines that a stray mark takes in nearly all are.
        if rows >= 0.8 * len(inside) and (len(inside) > 1 or len(cells) != len(header)):
            return [], f"{_STRAY} {len(inside)} lines that are rows themselves", 1
    return cells, None, reader.line_num


def _is_row(line: str, parse: _Parser, header: list[str], may_be_prose: bool) -> bool:
    try:
        cells = next(parse([line]))
    except csv.Error:
        return False
    # A space after a comma is a sign of prose, unless the table is written like that.
    is_prose = (
        may_be_prose
        and any(cell.startswith(" ") for cell in cells[1:])
        and not any(name.startswith(" ") for name in header[1:])
    )
    return len(cells) == len(header) > 1 and not is_prose
