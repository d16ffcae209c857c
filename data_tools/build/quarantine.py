"""Records that give no sample: the file that keeps them with their reasons, and the bound on their share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from data_tools.build.pack import Rejected
from data_tools.sources.base import BELOW_LABEL, RAW_CHARACTERS, SourceRecord
from pdfx.data.samples import too_many
from pdfx.errors import UserError, shortened

QUARANTINE_NAME = "quarantine.jsonl"
LEFT_OUT = ("duplicate", "leaked", BELOW_LABEL)
"""Kinds of records that give no sample though nothing is wrong with them."""

_JUDGED_FROM = 1000
_NAMED = 3
_REASON_CHARACTERS = 300
_SENTENCE_CHARACTERS = 1000


class TooManyBadRecords(UserError):
    """More records than allowed cannot be used."""


class AppendedFile:
    """A file of JSON lines that only grows, and begins again at a length that was written down; there is none as long
    as it would be empty.

    Args:
        length: bytes to keep of what is there.
    """

    def __init__(self, path: Path, length: int):
        self.path = path
        if length == 0:
            path.unlink(missing_ok=True)
        elif not path.is_file() or path.stat().st_size < length:
            raise UserError(
                f"{path} is missing or shorter than it was; restore it, or start over with --overwrite "
                "(overwrite=True)."
            )
        else:
            os.truncate(path, length)
        self.length = length
        self._stream: BinaryIO | None = None

    def append(self, line: dict) -> None:
        if self._stream is None:
            self._stream = self.path.open("ab")
        data = json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        self._stream.write(data)
        self.length += len(data)

    def flush(self) -> None:
        """Let others read all lines."""
        if self._stream is not None:
            self._stream.flush()

    def sync(self) -> None:
        """Put all lines on the disk."""
        if self._stream is not None:
            self._stream.flush()
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


def quarantine_line(source: SourceRecord, number: int, rejected: Rejected) -> dict:
    """What is kept of a record.

    Args:
        number: in the source, from 0.
    """
    raw = source.raw or (source.record.model_dump_json(exclude_none=True) if source.record is not None else "")
    sentences = {"origin": source.origin, "kind": rejected.kind, "reason": rejected.reason}
    cut = {name: shortened(text, _SENTENCE_CHARACTERS, _SENTENCE_CHARACTERS // 2) for name, text in sentences.items()}
    return {"number": number + 1, **cut, "record": shortened(raw, RAW_CHARACTERS)}


class BadShare:
    """Stops a build whose records are worse than their owner said they would be. What is left out on purpose is not
    bad.

    A single bad record is always forgiven, unless the share is 0.

    Args:
        total: records of the source, or None; the share is then that of the records read so far, once there are enough
            of them to judge by.
        overview: further sentences for the message.
    """

    def __init__(self, share: float, total: int | None, path: Path, overview: Callable[[], str] = str):
        self.share, self.total, self.path, self.overview = share, total, path, overview

    def check(self, bad: int, read: int, is_end: bool = False) -> None:
        """Raises TooManyBadRecords if ``bad`` of ``read`` records are too many."""
        of = read if is_end else max(read, _JUDGED_FROM if self.total is None else self.total)
        if too_many(bad, of, self.share):
            raise TooManyBadRecords(
                f"{bad} of the {read} records read cannot be used, and the share that may is {self.share:g}. "
                f"{self.overview()} {first_reasons(self.path)} {self.path} lists them all. Allow more with "
                "--max-bad-share (max_bad_share), and the same command resumes where it stopped; or correct them and "
                "start over."
            )


def first_reasons(path: Path) -> str:
    """A sentence about the first record of each kind in a quarantine file, of a few kinds."""
    first: dict[str, str] = {}
    with path.open("rb") as stream:
        for line in map(json.loads, stream):
            if line["kind"] not in LEFT_OUT and len(first) < _NAMED:
                first.setdefault(line["kind"], f"{line['origin']}: {line['reason']}")
    sentences = [shortened(reason, _REASON_CHARACTERS, _REASON_CHARACTERS // 3) for reason in first.values()]
    return " ".join(f"{sentence.removesuffix('.')}." for sentence in sentences)
