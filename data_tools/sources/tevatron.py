"""The layout of Tevatron: queries that name their positive and negative documents by id, and a corpus of documents."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Any

import numpy as np

from data_tools.sources.base import Paths, SourceRecord, file_identity
from data_tools.sources.rows import notes_on, open_rows, read_positives, require_columns
from data_tools.sources.values import (
    FieldError,
    Pictures,
    Row,
    Rows,
    as_record,
    identity_of,
    is_missing,
    list_of,
    shown,
    side_of,
    text_of,
)
from pdfx.data.numbers import NumberTable
from pdfx.data.schema import identity_number
from pdfx.errors import UserError
from pdfx.host.system_errors import naming

_DOCUMENT_COLUMNS = ("docid", "title", "document_text", "text", "document_image", "image")
_QUERY_COLUMNS = ("query_text", "query", "query_image")
_NAMED = ("positive_document_ids", "negative_document_ids")
_INLINE = ("positive_passages", "negative_passages")


class TevatronSource:
    """Records from queries and a corpus. A target's identity is its ``docid``.

    Queries have ``query_text`` and ``query_image``, and name their documents in ``positive_document_ids`` and
    ``negative_document_ids``; documents have ``docid``, ``document_text`` and ``document_image``. The names ``query``,
    ``text`` and ``image`` are read too, and a ``title`` is put before the text. Queries in the older layout, which hold
    ``positive_passages`` and ``negative_passages`` themselves, need no corpus.

    Args:
        queries: JSONL, parquet, CSV: a file, several files of one kind, or a directory of them.
        corpus: likewise. It is unpacked into a temporary file first.
        positives: ``first``: a query gives one record, with its first positive. ``each``: one record for each positive.
        negatives: so many negatives of each query are kept.
        missing_negatives: ``problem``: a query with a negative that the corpus lacks, or that is unusable, is not used.
            ``skip``: it is, without this negative.
        documents: ``named``: only what queries name is read. ``all``: after the queries, each document that is the
            target of none gives a record without a query, to be searched in.

    Raises:
        UserError: a file cannot be read, a column is missing, or there is no corpus if queries name documents by id.
    """

    def __init__(
        self,
        queries: Paths,
        corpus: Paths | None = None,
        positives: str = "first",
        negatives: int | None = None,
        missing_negatives: str = "problem",
        documents: str = "named",
    ):
        self.queries = open_rows(queries)
        self.settings = {
            "positives": positives,
            "negatives": negatives,
            "missing_negatives": missing_negatives,
            "documents": documents,
        }
        is_inline = _NAMED[0] not in self.queries.columns and _INLINE[0] in self.queries.columns
        self.positive_field, self.negative_field = _INLINE if is_inline else _NAMED
        if not is_inline:
            require_columns(self.queries, _NAMED[:1], "the layout of Tevatron")
            if corpus is None:
                raise UserError(
                    f"{self.queries.files[0]} names documents by id; say where these are, as in corpus=corpus.jsonl."
                )
        elif corpus is not None and documents == "named":
            raise UserError(
                f"corpus={corpus} has no effect, since {self.queries.files[0]} holds its documents itself; leave it "
                "out, or give documents=all."
            )
        elif documents == "all" and corpus is None:
            raise UserError("documents=all needs a corpus; say where it is, as in corpus=corpus.jsonl.")
        self.documents = open_rows(corpus) if corpus is not None else None
        if self.documents is not None:
            require_columns(self.documents, _DOCUMENT_COLUMNS[:1], "the layout of Tevatron")

    def identity(self) -> dict:
        files = {
            "files": file_identity(self.queries.files),
            "corpus": file_identity(self.documents.files) if self.documents is not None else None,
        }
        return {"format": "tevatron", **files, **self.settings}

    def total(self) -> int | None:
        is_known = self.settings["positives"] == "first" and self.settings["documents"] == "named"
        return self.queries.total() if is_known else None

    def notes(self) -> list[str]:
        of_corpus = notes_on(self.documents, _DOCUMENT_COLUMNS) if self.documents is not None else []
        return [*notes_on(self.queries, self._columns), *of_corpus]

    @cached_property
    def corpus(self) -> Corpus:
        assert self.documents is not None, "the constructor asks for a corpus if one is needed"
        return Corpus(self.documents)

    def records(self, start: int = 0) -> Iterator[SourceRecord]:
        if self.settings["documents"] == "named":
            return self._of_queries(start)
        return islice(self._with_rest(), start, None)

    def _of_queries(self, start: int = 0) -> Iterator[SourceRecord]:
        is_each = self.settings["positives"] == "each"
        positives = read_positives(self.queries, self.positive_field, is_each, start, self._columns)
        return (as_record(row, partial(self._fields, positive)) for row, positive in positives)

    @property
    def _columns(self) -> list[str]:
        wanted = (*_QUERY_COLUMNS, self.positive_field, self.negative_field)
        return [name for name in wanted if name in self.queries.columns]

    def _with_rest(self) -> Iterator[SourceRecord]:
        is_target = np.zeros(len(self.corpus), dtype=bool)
        for source in self._of_queries():
            if source.record is not None and (number := self.corpus.find(source.record.target_id or "")) is not None:
                is_target[number] = True
            yield source
        for number in np.flatnonzero(~is_target).tolist():
            yield self._without_query(number)

    def _fields(self, positive: int, values: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
        text = text_of(_first(values, "query_text", "query"), "query_text")
        query = side_of(text, pictures.names(values.get("query_image"), "query_image"), "query_text")
        positives = list_of(values.get(self.positive_field), self.positive_field)
        if not positives:
            raise FieldError(f"'{self.positive_field}' is empty: the query has no target")
        target = self._document(positives[positive], f"{self.positive_field}.{positive}", pictures)
        return {
            "query": query,
            "target": target.side,
            "target_id": target.identity,
            "negatives": self._negatives(values, pictures),
        }

    def _negatives(self, values: dict[str, Any], pictures: Pictures) -> list[dict[str, Any]]:
        negatives: list[dict[str, Any]] = []
        most = self.settings["negatives"]
        for number, given in enumerate(list_of(values.get(self.negative_field), self.negative_field)):
            if len(negatives) == most:
                break
            try:
                document = self._document(given, f"{self.negative_field}.{number}", pictures)
            except FieldError:
                if self.settings["missing_negatives"] == "problem":
                    raise
                continue
            negatives.append({**document.side, "target_id": document.identity})
        return negatives

    def _document(self, given: Any, place: str, pictures: Pictures) -> Document:
        """The document that a query names, or holds."""
        if self.positive_field == _INLINE[0]:
            if not isinstance(given, dict):
                raise FieldError(f"'{place}' is {shown(given)}: it must be an object with 'docid', 'title' and 'text'")
            identity = identity_of(given["docid"], f"{place}.docid") if not is_missing(given.get("docid")) else None
            return Document("", identity, _document_side(given, pictures))
        identity = identity_of(given, place)
        number = self.corpus.find(identity)
        if number is None:
            raise FieldError(
                f"'{place}' names the document '{identity}', which is not in the corpus {self.corpus.path}"
            )
        document = self.corpus[number]
        if document.problem is not None:
            raise FieldError(
                f"'{place}' names the document '{identity}' ({document.origin}), which cannot be used: "
                f"{document.problem}"
            )
        pictures.held |= document.pictures
        return document

    def _without_query(self, number: int) -> SourceRecord:
        document = self.corpus[number]
        problem = document.problem
        first = self.corpus.find(document.identity) if document.identity is not None else None
        if problem is None and first is not None and first != number:
            problem = f"the docid '{document.identity}' is already that of {self.corpus[first].origin}"
        if problem is not None:
            return SourceRecord(document.origin, problem=problem, raw=document.raw)
        return as_record(Row(document.origin, {}), partial(_alone, document))


def _alone(document: Document, values: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
    pictures.held |= document.pictures
    return {"target": document.side, "target_id": document.identity}


def _document_side(values: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
    """Text and pictures of a document; a title is put before the text, as Tevatron does."""
    parts = (text_of(values.get("title"), "title"), text_of(_first(values, "document_text", "text"), "document_text"))
    return side_of(
        " ".join(filter(None, parts)),
        pictures.names(_first(values, "document_image", "image"), "document_image"),
        "document_text",
    )


def _first(values: dict[str, Any], *names: str) -> Any:
    """The first of these values that is not empty."""
    return next((values[name] for name in names if not is_missing(values.get(name))), None)


@dataclass
class Document:
    """One document of a corpus.

    Attributes:
        identity: its id, if it has one.
        side: text and names of its pictures, as of a target.
        problem, pictures, raw: as in ``base.SourceRecord``.
    """

    origin: str
    identity: str | None
    side: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    pictures: dict[str, bytes] = field(default_factory=dict)
    raw: str = ""


class Corpus:
    """The documents of a table in their order: unpacked once into a temporary file, which needs as much room as they
    do, beside an index of 24 bytes per document in memory."""

    def __init__(self, rows: Rows):
        self.path = rows.files[0]
        self._file = tempfile.TemporaryFile(prefix="pdfx-corpus-")
        starts, numbers = array("q"), array("q")
        for row in rows.read(0, [name for name in _DOCUMENT_COLUMNS if name in rows.columns]):
            document = _document(row)
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

    def _head(self, number: int) -> dict[str, Any]:
        self._file.seek(int(self._starts[number]))
        return json.loads(self._file.readline())

    def _write(self, document: Document) -> None:
        head = {name: getattr(document, name) for name in ("origin", "identity", "side", "problem", "raw")}
        head["pictures"] = [(name, len(data)) for name, data in document.pictures.items()]
        self._file.write(json.dumps(head).encode() + b"\n")
        for data in document.pictures.values():
            self._file.write(data)


def _document(row: Row) -> Document:
    if row.values is None:
        return Document(row.origin, None, problem=row.problem, raw=row.raw)
    document = Document(row.origin, None)
    try:
        document.identity = identity_of(row.values.get("docid"), "docid")
        pictures = Pictures(f"{document.identity} ")
        document.side = _document_side(row.values, pictures)
        document.pictures = pictures.held
    except FieldError as error:
        document.problem, document.raw = str(error), row.raw
    return document
