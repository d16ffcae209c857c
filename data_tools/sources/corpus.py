"""A corpus of documents, found by their ids: unpacked once into a temporary file, beside an index of 24 bytes per
document in memory."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_tools.sources.tables.values import FieldError, Pictures, Row, Rows, identity_of
from pdfx.data.numbers import NumberTable
from pdfx.data.schema import identity_number
from pdfx.host.system_errors import naming

_ID = "docid"


@dataclass
class Document:
    """One document of a corpus.

    Attributes:
        identity: its id; None if ``problem`` says that it has none.
        side: text and names of its pictures, as of a target.
        problem: the part of a sentence that says why it cannot be used; None if it can.
        pictures: bytes of those pictures that the corpus itself holds, by name.
        raw: what a quarantine file shows of one that cannot be used.
    """

    origin: str
    identity: str | None
    side: dict[str, Any] | None = None
    problem: str | None = None
    pictures: dict[str, bytes] = field(default_factory=dict)
    raw: str = ""


class Corpus:
    """The documents of a table in their order. Reading them all into the temporary file is the first thing it does; the
    file needs as much room as they do.

    Args:
        side_of_document: from a row's values to the document's text and pictures. May raise FieldError.
        columns: those that it reads.
    """

    def __init__(
        self, rows: Rows, side_of_document: Callable[[dict[str, Any], Pictures], dict[str, Any]], columns: list[str]
    ):
        self._file = tempfile.TemporaryFile(prefix="pdfx-corpus-")
        starts, numbers = array("q"), array("q")
        for row in rows.read(0, columns):
            document = _document(row, side_of_document)
            starts.append(self._file.tell())
            numbers.append(identity_number(document.identity) if document.identity is not None else 0)
            with naming(tempfile.gettempdir()):
                self._write(document)
        self._starts, self._table = np.array(starts), NumberTable(np.array(numbers))

    def __len__(self) -> int:
        return len(self._starts)

    def find(self, identity: str) -> int | None:
        """The number of the first document that bears this id."""
        found = self._table.find(identity_number(identity)).tolist()
        # Ids whose numbers merely collide are not confused.
        return next((document for document in found if self._head(document)["identity"] == identity), None)

    def __getitem__(self, number: int) -> Document:
        head = self._head(number)
        pictures = {name: self._file.read(size) for name, size in head.pop("pictures")}
        return Document(**head, pictures=pictures)

    def __iter__(self) -> Iterator[Document]:
        return (self[number] for number in range(len(self)))

    def _head(self, number: int) -> dict[str, Any]:
        self._file.seek(int(self._starts[number]))
        return json.loads(self._file.readline())

    def _write(self, document: Document) -> None:
        head = {name: getattr(document, name) for name in ("origin", "identity", "side", "problem", "raw")}
        head["pictures"] = [(name, len(data)) for name, data in document.pictures.items()]
        self._file.write(json.dumps(head).encode() + b"\n")
        for data in document.pictures.values():
            self._file.write(data)


def _document(row: Row, side_of_document: Callable[[dict[str, Any], Pictures], dict[str, Any]]) -> Document:
    document = Document(row.origin, None)
    try:
        if row.problem is not None:
            raise FieldError(row.problem)
        document.identity = identity_of(row.values.get(_ID), _ID)
        pictures = Pictures(f"{document.identity} ")
        document.side = side_of_document(row.values, pictures)
        document.pictures = pictures.held
    except FieldError as error:
        document.problem, document.raw = str(error), row.raw
    return document
