"""A row of a table, and from its values to the texts and pictures of a record, or to the reason why a field is
wrong."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from data_tools.sources.base import BELOW_LABEL, RAW_CHARACTERS, SourceRecord
from pdfx.data.schema import Record, explain
from pdfx.errors import shortened

_SHOWN_CHARACTERS = 80
_REMOTE = ("http://", "https://", "s3://", "gs://", "hf://")

_MARKER = r"(?:<\|image_[0-9]+\|>|<\|image_pad\|>|<image>)"
_MARKERS = re.compile(rf"[^\S\n]*{_MARKER}(?:[^\S\n]*{_MARKER})*[^\S\n]*")
_LINES_OF_MARKERS = re.compile(rf"^[^\S\n]*(?:{_MARKER}[^\S\n]*)+\n", re.MULTILINE)

_IN_APPOSITION = re.compile(rf"\b(image|picture|photo),[^\S\n]*{_MARKER}(?=,)")

_IMAGE_NAMED = ("image", "picture", "photo")
_NEEDS_NOUN = ("the", "a", "this", "given", "provided", "following")
_VERB = re.compile(r"(?:is|can|has|shows|contains|depicts|should|must|will)\b")


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
    remarks: list[str]
    left: list[str]

    @property
    def all_columns(self) -> list[str]: ...

    def total(self) -> int | None:
        """How many rows there are, if that is cheap to know."""

    def read(self, start: int = 0, columns: list[str] | None = None) -> Iterator[Row]:
        """The rows from number ``start`` on, with the values of these columns at least."""


def any_columns(columns_of: list[list[str]]) -> list[str]:
    """The names that any file has."""
    return list(dict.fromkeys(name for columns in columns_of for name in columns))


def common_columns(columns_of: list[list[str]]) -> list[str]:
    """The names that every file has, in the order of the first."""
    return [name for name in columns_of[0] if all(name in columns for columns in columns_of[1:])]


def raw_of(values: dict[str, Any]) -> str:
    """A row as JSON, with bytes as their number."""
    text = json.dumps(
        values,
        ensure_ascii=False,
        default=lambda value: f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value),
    )
    return shortened(text, RAW_CHARACTERS)


class FieldError(ValueError):
    """Why a record cannot be used: the part of a sentence, with the field named.

    Attributes:
        kind: see ``SourceRecord.kind``.
    """

    def __init__(self, message: str, kind: str = SourceRecord.kind):
        super().__init__(message)
        self.kind = kind


class Pictures:
    """The pictures of one record.

    Args:
        owner: what the pictures belong to, if a record has several such.

    Attributes:
        held: bytes of those that the row itself holds, by the name that the record gives them.
    """

    def __init__(self, owner: str = ""):
        self.owner = owner
        self.held: dict[str, bytes] = {}

    def names(self, value: Any, field: str) -> list[str]:
        """The names of the pictures of a cell: a path, bytes, ``{"bytes", "path"}`` as Hugging Face stores pictures, a
        ``data:`` address, or a list of them.

        Raises:
            FieldError: it is something else.
        """
        values = value if isinstance(value, list) else [value]
        return [self._name(one, field) for one in values if not is_missing(one)]

    def _name(self, value: Any, field: str) -> str:
        if isinstance(value, dict) and value.keys() & {"bytes", "path"}:
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
            if value is None:
                raise FieldError(f"'{field}' holds neither the bytes nor the path of a picture")
        if isinstance(value, str) and value.startswith("data:"):
            value = _decoded(value, field)
        if isinstance(value, bytes):
            name = f"<{self.owner}{field} {len(self.held)}>"
            self.held[name] = value
            return name
        if not isinstance(value, str) or not value:
            raise FieldError(f"'{field}' is {shown(value)}: it must be the path of a picture, or its bytes")
        if value.startswith(_REMOTE):
            raise FieldError(
                f"'{field}' is {shown(value)}: pictures are not downloaded; fetch it and give the path of the file"
            )
        return value


def as_record(row: Row, build: Callable[[dict[str, Any], Pictures], dict[str, Any]]) -> SourceRecord:
    """The record of a row.

    Args:
        build: from the row's values to the fields of a ``Record``. May raise FieldError.
    """
    if row.values is None:
        return SourceRecord(row.origin, problem=row.problem, raw=row.raw)
    pictures = Pictures()
    try:
        record = Record.model_validate(build(row.values, pictures))
    except FieldError as error:
        return SourceRecord(row.origin, problem=str(error), raw=row.raw, kind=error.kind)
    except ValidationError as error:
        return SourceRecord(row.origin, problem=explain(error).removesuffix("."), raw=row.raw)
    return SourceRecord(row.origin, record, pictures=pictures.held, raw=row.raw)


def is_missing(value: Any) -> bool:
    """Whether a cell is empty."""
    return value is None or isinstance(value, (str, list)) and not value


def text_of(value: Any, field: str) -> str:
    """The text of a cell; an empty cell gives an empty one.

    Raises:
        FieldError: it is something else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise FieldError(f"'{field}' is {shown(value)}: it must be a text")
    return value


def identity_of(value: Any, field: str) -> str:
    """A name or number that something is known by.

    Raises:
        FieldError: it is empty or something else.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise FieldError(f"'{field}' is {shown(value)}: it must be a name or a whole number")
    return str(value)


def list_of(value: Any, field: str) -> list:
    """The elements of a cell that holds a list; an empty cell has none.

    Raises:
        FieldError: it is something else.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise FieldError(f"'{field}' is {shown(value)}: it must be a list")
    return value


def side_of(text: str, images: list[str], field: str) -> dict[str, Any]:
    """A query, target or negative.

    Raises:
        FieldError: it would be empty.
    """
    if not text and not images:
        raise FieldError(f"'{field}' holds neither a text nor a picture")
    return {"text": text, "images": images}


def shown(value: Any) -> str:
    """A value for a message."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return shortened(repr(value), _SHOWN_CHARACTERS)


def _decoded(address: str, field: str) -> bytes:
    head, _, data = address.partition(",")
    if not head.endswith(";base64"):
        raise FieldError(f"'{field}' is {shown(address)}: of data addresses only those in base64 can be read")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FieldError(f"'{field}' is a data address that cannot be decoded ({error})") from None


def require_label(value: Any, field: str, least: float | None) -> None:
    """Raises FieldError if a label, which says how similar the sides of a pair are, is lower than that of a positive
    pair (any will do if ``least`` is None) or not a number: trained on, the pair would teach the opposite."""
    if least is None:
        return
    try:
        number = float(value) if isinstance(value, (str, int, float)) else None
    except ValueError:
        number = None
    if number is None or number != number:
        raise FieldError(f"'{field}' is {shown(value)}: it must be a number")
    if number < least:
        raise FieldError(
            f"'{field}' is {number:g}, below min_label={least:g}, so it is not a positive pair", BELOW_LABEL
        )


def has_marker(text: str) -> bool:
    return "<" in text and re.search(_MARKER, text) is not None


def without_markers(text: str) -> str:
    """The text without white space around it and without markers of images, such as ``<|image_1|>``: the processor puts
    images before the text in its own family's way.

    A marker that stands alone, or before or after a sentence, is removed. One that is a word of a sentence becomes "the
    image", or "image" after an article.

    >>> without_markers("<|image_1|>\\nRepresent the given image.")
    'Represent the given image.'
    >>> without_markers("Evaluate <|image_1|> and provide a label.")
    'Evaluate the image and provide a label.'
    """
    if not has_marker(text):
        return text.strip()
    return _MARKERS.sub(_words, _IN_APPOSITION.sub(r"\1", _LINES_OF_MARKERS.sub("", text))).strip()


def _words(match: re.Match) -> str:
    before = match.string[: match.start()].rpartition("\n")[2]
    after = match.string[match.end() :]
    space = " " if after and not re.match(r"[\s.,:;!?)]", after) else ""
    if not before or before[-1] in ".!?":
        words = "The image" if _VERB.match(after) else ""
    elif before[-1] in ":;" or before.split()[-1].casefold() in _IMAGE_NAMED:
        words = ""
    else:
        words = "image" if before.split()[-1].casefold() in _NEEDS_NOUN else "the image"
    if not before:
        return f"{words}{space}" if words else ""
    return f" {words}{space}" if words else space
