"""Rows of named values from whichever kind of table: JSONL, CSV and TSV, or parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from data_tools.sources.base import Paths, SourceRecord, file_identity, has_ending, input_files, left_in_folders
from data_tools.sources.lines import JSONL_ENDINGS, RAW_CHARACTERS, Line, is_cheap_to_read, read_lines
from data_tools.sources.tables.delimited import DelimitedRows
from data_tools.sources.tables.values import Pictures, Row, Rows, as_record
from pdfx.data.schema import json_problem
from pdfx.errors import UserError, nearest, shortened
from pdfx.host.files import file_stamp

DELIMITED_ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
PARQUET_ENDINGS = (".parquet",)
TABLE_ENDINGS = (*PARQUET_ENDINGS, *DELIMITED_ENDINGS, *JSONL_ENDINGS)
_SAMPLED_LINES = 1000
_COUNTED_BYTES = 1 << 30
"""JSONL files of more bytes than this in all are not counted beforehand."""


def open_rows(paths: Paths, delimiter: str | None = None, quotes: bool = True) -> Rows:
    """The rows of a file, of several files of one kind, or of a directory of them.

    Args:
        delimiter: what separates the cells of CSV; by default a comma, and a tab in files that are named .tsv.
        quotes: whether quotation marks around a cell of CSV or TSV are not part of it.

    Raises:
        UserError: a file cannot be read, is damaged, or is of another kind than the first one.
    """
    files = input_files(paths, TABLE_ENDINGS)
    kinds = {_kind(path): path for path in files}
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise UserError(f"{first} is {one} and {second} is {other}; give files of one kind in one build.")
    kind = next(iter(kinds))
    if kind in ("JSONL", "parquet") and (delimiter is not None or not quotes):
        raise UserError(f"delimiter and quotes are for CSV and TSV, and {files[0]} is {kind}; leave them out.")
    if kind == "JSONL":
        rows = JsonlRows(files)
    elif kind == "parquet":
        # Imported where it is needed, since pyarrow is slow to import.
        from data_tools.sources.tables.parquet import ParquetRows

        rows = ParquetRows(files)
    else:
        rows = DelimitedRows(files, delimiter, quotes)
    rows.left = left_in_folders(paths, files)
    return rows


def _kind(path: Path) -> str:
    for kind, endings in (("JSONL", JSONL_ENDINGS), ("CSV or TSV", DELIMITED_ENDINGS), ("parquet", PARQUET_ENDINGS)):
        if has_ending(path, endings):
            return kind
    raise UserError(f"{path} is not a table that can be read; its name must end in one of {', '.join(TABLE_ENDINGS)}.")


def require_columns(rows: Rows, wanted: Iterable[str], why: str) -> None:
    """Raises UserError if the files lack one of the columns; ``why`` says who wants them."""
    for name in wanted:
        if name not in rows.columns:
            close = nearest(name, [column[:80] for column in rows.columns], least=0.5)
            hint = f" Did you mean '{close}'?" if close else ""
            raise UserError(
                f"There is no column '{name}' in {rows.files[0]}{others(rows.files)}, which {why} names.{hint} There "
                f"are: {listed(rows.columns)}."
            )


def notes_on(rows: Rows, used: Iterable[str]) -> list[str]:
    """Sentences on a table that was read, and on its columns that are not used."""
    names = [name for name in rows.all_columns if name not in set(used)]
    unused = (
        f"Columns of {rows.files[0]}{others(rows.files)} that are not used: {shortened(listed(names), RAW_CHARACTERS)}."
    )
    return [*rows.remarks, *([unused] if names else []), *rows.left]


class RowsSource:
    """What the sources have in common whose records are the rows of a table. Implements ``base.Source``.

    Attributes:
        settings: what decides the records beside the rows, for ``identity``.
        used: the columns that are read.
    """

    format: str
    rows: Rows
    settings: dict[str, Any]
    used: list[str]

    def identity(self) -> dict:
        return {"format": self.format, "files": file_identity(self.rows.files), **self.settings}

    def total(self) -> int | None:
        return self.rows.total()

    def notes(self) -> list[str]:
        return notes_on(self.rows, self.used)

    def records(self, start: int = 0) -> Iterator[SourceRecord]:
        return (as_record(row, self._fields) for row in self.rows.read(start, self.used))

    def _fields(self, values: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
        """A record's fields from a row's values; every format whose rows are records defines it."""
        raise NotImplementedError


def read_positives(
    rows: Rows, field: str, is_each: bool, start: int, columns: list[str] | None = None
) -> Iterator[tuple[Row, int]]:
    """(row, number of a positive) of each record from number ``start`` on: one for each positive in the list ``field``,
    or one for the first. A row without a usable list gives one, which has its problem."""
    if not is_each:
        return ((row, 0) for row in rows.read(start, columns))
    found = ((row, row.values.get(field) if row.values is not None else None) for row in rows.read(0, columns))
    counted = ((row, len(positives) if isinstance(positives, list) and positives else 1) for row, positives in found)
    return islice(((row, number) for row, count in counted for number in range(count)), start, None)


def listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"


def others(files: list[Path]) -> str:
    return f" and {len(files) - 1} more" if len(files) > 1 else ""


class JsonlRows:
    """Implements ``values.Rows``. ``columns`` are the keys of the first thousand lines."""

    remarks: list[str] = []

    def __init__(self, files: list[Path]):
        self.files = files
        self.columns = _scan(files)[0]
        self._keys = dict.fromkeys(self.columns)

    def total(self) -> int | None:
        return count_lines(self.files)

    def read(self, start: int = 0, columns: list[str] | None = None) -> Iterator[Row]:
        for row in map(_to_row, read_lines(self.files, start)):
            self._keys |= dict.fromkeys(row.values or ())
            yield row

    @property
    def all_columns(self) -> list[str]:
        return list(self._keys)


def count_lines(files: list[Path]) -> int | None:
    """How many lines ``read_lines`` yields; None if counting them would mean unpacking or reading very much."""
    return _scan(files)[1] if is_cheap_to_read(files, _COUNTED_BYTES) else None


def _scan(files: list[Path]) -> tuple[list[str], int]:
    """The keys of the first lines, and how many lines there are, if it is cheap to know. Files that have not changed
    since they were scanned are not read again."""
    return _scan_once(tuple(files), tuple(map(file_stamp, files)))


@lru_cache(maxsize=4)
def _scan_once(files: tuple[Path, ...], stamps: tuple[str, ...]) -> tuple[list[str], int]:
    keys, count = {}, 0
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
