"""A row of a table, and what the reader of each kind of file offers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data_tools.sources.lines import RAW_CHARACTERS
from pdfx.errors import shortened


@dataclass(slots=True)
class Row:
    """One row of a table, or why there is none.

    Attributes:
        origin: file and number of line or row, for messages.
        values: by column; None if ``problem`` says why.
        problem: the part of a sentence that says why the row cannot be used; None if it can.
        raw: what a quarantine file shows of it.
    """

    origin: str
    values: dict[str, Any] | None
    problem: str | None = None
    raw: str = ""


class Rows(Protocol):
    """The rows of files of one kind.

    Attributes:
        columns: names that every file has, in the order of the first; of JSONL, the keys of the first lines.
        all_columns: names that any file has; of JSONL, the keys of all lines read so far.
        remarks: sentences on what was read.
        left: sentences on what lies beside the files and is not read.
    """

    files: list[Path]
    columns: list[str]
    all_columns: list[str]
    remarks: list[str]
    left: list[str]

    def total(self) -> int | None:
        """How many rows there are, where that is cheap to know."""

    def read(self, start: int = 0, columns: list[str] | None = None) -> Iterator[Row]:
        """The rows from number ``start`` on, with the values of these columns at least."""


def any_columns(columns_of: list[list[str]]) -> list[str]:
    """The names that any file has."""
    return list(dict.fromkeys(name for columns in columns_of for name in columns))


def common_columns(columns_of: list[list[str]]) -> list[str]:
    """The names that every file has, in the order of the first."""
    return [name for name in columns_of[0] if all(name in columns for columns in columns_of[1:])]


def raw_of(values: dict[str, Any]) -> str:
    """A row as JSON, with bytes told by their number."""
    text = json.dumps(
        values,
        ensure_ascii=False,
        default=lambda value: f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value),
    )
    return shortened(text, RAW_CHARACTERS)
