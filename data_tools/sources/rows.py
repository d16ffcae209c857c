"""Rows of named values from whichever kind of table: JSONL, CSV and TSV, or parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data_tools.sources.base import (
    RAW_CHARACTERS,
    Paths,
    SourceRecord,
    file_identity,
    has_ending,
    input_files,
    left_in_folders,
)
from data_tools.sources.delimited import DelimitedRows
from data_tools.sources.jsonl import JSONL_ENDINGS, JsonlRows
from data_tools.sources.values import Pictures, Row, Rows, as_record
from pdfx.errors import UserError, nearest, shortened

DELIMITED_ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
PARQUET_ENDINGS = (".parquet",)
TABLE_ENDINGS = (*PARQUET_ENDINGS, *DELIMITED_ENDINGS, *JSONL_ENDINGS)


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
    rows: Rows
    if kind == "parquet":
        # Imported where it is needed, since pyarrow is slow to import.
        from data_tools.sources.parquet import ParquetRows

        rows = ParquetRows(files)
    else:
        rows = JsonlRows(files) if kind == "JSONL" else DelimitedRows(files, delimiter, quotes)
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
