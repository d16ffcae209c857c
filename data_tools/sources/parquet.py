"""The rows of parquet files, read in small batches, from any row group on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from data_tools.sources.values import Row, any_columns, common_columns, raw_of
from pdfx.errors import UserError

_BATCH_ROWS = 64
_BUFFER_BYTES = 1 << 20
"""Read at once of each column. Memory so holds a batch and, of each column, a page (as its writer made them: a
megabyte, or more), and no row group."""


class ParquetRows:
    """Implements ``values.Rows``.

    Raises:
        UserError: a file is not a sound parquet file.
    """

    remarks: list[str] = []
    left: list[str] = []

    def __init__(self, files: list[Path]):
        self.files = files
        self._group_rows: list[list[int]] = []
        columns_of = []
        for path in files:
            try:
                with parquet.ParquetFile(path) as file:
                    columns_of.append(file.schema_arrow.names)
                    groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
                    self._group_rows.append([group.num_rows for group in groups])
            except (pyarrow.ArrowException, OSError) as error:
                raise UserError(f"{path} is not a sound parquet file ({_brief(error)}).") from None
        self.columns, self.all_columns = common_columns(columns_of), any_columns(columns_of)

    def total(self) -> int:
        return sum(map(sum, self._group_rows))

    def read(self, start: int = 0, columns: list[str] | None = None) -> Iterator[Row]:
        for path, group_rows in zip(self.files, self._group_rows, strict=True):
            first = 0
            for group, rows in enumerate(group_rows):
                if start < rows:
                    yield from self._read_group(path, group, rows, first, start, columns)
                start = max(start - rows, 0)
                first += rows

    def _read_group(
        self, path: Path, group: int, rows: int, first: int, skipped: int, columns: list[str] | None
    ) -> Iterator[Row]:
        """The rows of a row group but the first ``skipped``; ``first`` is the number of its first row in the file."""
        done = 0
        try:
            with parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
                    for number, (values, problem) in enumerate(_values(batch), start=done):
                        if number >= skipped:
                            raw = raw_of(values) if values is not None else ""
                            yield Row(_origin(path, first + number), values, problem, raw)
                    done += len(batch)
                if done != rows:
                    raise UserError(
                        f"Row group {group + 1} of {path} has {done} rows, and its header claims {rows}; write the "
                        "file again."
                    )
        except (pyarrow.ArrowException, OSError) as error:
            for number in range(max(done, skipped), rows):
                yield Row(_origin(path, first + number), None, f"its row group is damaged ({_brief(error)})")


def _values(batch: pyarrow.RecordBatch) -> Iterator[tuple[dict[str, Any] | None, str | None]]:
    """(values, None) or (None, problem) of each row."""
    try:
        yield from ((values, None) for values in batch.to_pylist())
    except ValueError:
        # A single cell that Python has no value for (bytes that are not UTF-8, a date beyond the year 9999) fails the
        # batch: its row is looked for.
        for number in range(len(batch)):
            try:
                yield batch.slice(number, 1).to_pylist()[0], None
            except ValueError as error:
                yield None, f"it holds a value that cannot be read ({_brief(error)})"


def _origin(path: Path, row: int) -> str:
    return f"{path} row {row + 1}"


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200].removesuffix(".")
