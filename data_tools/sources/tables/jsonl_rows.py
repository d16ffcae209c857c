"""The objects of JSONL files as rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pydantic_core import from_json

from data_tools.sources.lines import Line, count_lines, read_lines
from data_tools.sources.tables.base import Row
from pdfx.data.schema import json_problem

_SAMPLED_LINES = 1000


class JsonlRows:
    """Implements ``rows.Rows``. ``columns`` are the keys of the first thousand lines."""

    remarks: list[str] = []

    def __init__(self, files: list[Path]):
        self.files = files
        self._keys: dict[str, None] = {}
        self.columns = list(
            dict.fromkeys(key for row in islice(self.read(), _SAMPLED_LINES) for key in row.values or ())
        )

    def total(self) -> int | None:
        return count_lines(self.files)

    def read(self, start: int = 0, columns: list[str] | None = None) -> Iterator[Row]:
        for row in map(_to_row, read_lines(self.files, start)):
            self._keys |= dict.fromkeys(row.values or ())
            yield row

    @property
    def all_columns(self) -> list[str]:
        return list(self._keys)


def _to_row(line: Line) -> Row:
    if line.problem is not None:
        return Row(line.origin, None, line.problem, line.raw)
    try:
        values = from_json(line.data)
    except ValueError as error:
        return Row(line.origin, None, json_problem(str(error)), line.raw)
    if not isinstance(values, dict):
        return Row(line.origin, None, "it is no JSON object, which stands in braces", line.raw)
    return Row(line.origin, values, None, line.raw)
