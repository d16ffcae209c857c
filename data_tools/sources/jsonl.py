"""JSONL files of the project's own schema: one record per line."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from data_tools.sources.base import Paths, SourceRecord, file_identity, input_files, left_in_folders
from data_tools.sources.lines import JSONL_ENDINGS, Line, read_lines
from data_tools.sources.tables.rows import count_lines
from pdfx.data.schema import Record, explain
from pdfx.host.reading import parse_json


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
        return count_lines(self.files)

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
