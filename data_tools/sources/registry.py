"""The formats that shards are built from, by name, with their options. A format's module is imported when it is
used."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.sources.base import Source, has_ending
from data_tools.sources.folder_files import METADATA_NAMES, UNREAD_ENDINGS, is_picture, listings
from data_tools.sources.jsonl import JSONL_ENDINGS
from data_tools.sources.rows import TABLE_ENDINGS, listed, open_rows
from pdfx.errors import UserError, nearest


@dataclass(frozen=True)
class Option:
    """One option of a format.

    Attributes:
        help: what it says.
        parse: from its text to the argument of the importer. Raises ValueError with the part of a sentence that says
            what it must be.
    """

    help: str
    parse: Callable[[str], Any] = str


def _one_of(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"it must be {', '.join(values[:-1])} or {values[-1]}")
        return text

    return parse


def _yes_or_no(text: str) -> bool:
    return _one_of("yes", "no")(text) == "yes"


def _number(text: str) -> float:
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise ValueError("it must be a number")


def _whole_number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError("it must be a whole number, 0 or more")
    return int(text)


@dataclass(frozen=True)
class Format:
    """A way to lay records out.

    Attributes:
        summary: what it is, in a few words.
        source: where its importer is: module and class.
        options: what can be set, by name; each is an argument of the class.
        columns: by which the format is known: a table has all columns of one of the sets.
    """

    summary: str
    source: str
    options: dict[str, Option] = field(default_factory=dict)
    columns: tuple[set[str], ...] = ()

    def open(self, path: Path, values: dict) -> Source:
        module, _, name = self.source.partition(":")
        return getattr(importlib.import_module(f".{module}", __package__), name)(path, **values)


_MOST_NEGATIVES = Option("so many hard negatives of each record are kept; all by default", _whole_number)
_POSITIVES = Option(
    "'first' (default): one record, with the first positive; 'each': one record for each positive",
    _one_of("first", "each"),
)
_DELIMITER = Option("what separates the cells of CSV; a comma by default, a tab in .tsv files")
_QUOTES = Option("'no' if quotation marks in CSV and TSV are part of the text", _yes_or_no)

FORMATS: dict[str, Format] = {
    "jsonl": Format("one record per line, with the project's own keys (.jsonl, .jsonl.gz)", "jsonl:JsonlSource"),
    "folder": Format(
        "a folder of pictures with captions in text files beside them, or in Hugging Face's metadata files",
        "folder:FolderSource",
        {
            "query": Option("which side is the query: 'text' (default) or 'image'", _one_of("text", "image")),
            "captions": Option(
                "'file' (default): a text file is one caption; 'lines': each of its lines is one; 'first': its first "
                "line is the only one",
                _one_of("file", "lines", "first"),
            ),
            "text": Option("column of captions in metadata files"),
        },
    ),
    "table": Format(
        "parquet, CSV, TSV or JSONL of any columns, which the options name",
        "table:TableSource",
        {
            "query.text": Option("column of the query's text; several are separated by commas"),
            "query.images": Option(
                "column of the query's pictures: paths, bytes, or Hugging Face's {'bytes', 'path'}, or lists of them"
            ),
            "target.text": Option("column of the target's text"),
            "target.images": Option("column of the target's pictures"),
            "negatives.text": Option("columns of the texts of hard negatives, one or a list in each"),
            "negatives.images": Option("columns of the pictures of hard negatives, one or a list in each"),
            "target_id": Option("column of the target's identity"),
            "key": Option("column of the record's key"),
            "candidates": Option("column of the lists of identities that an evaluation searches in"),
            "delimiter": _DELIMITER,
            "quotes": _QUOTES,
        },
    ),
    "columns": Format(
        "parquet, CSV, TSV or JSONL with the columns of sentence-transformers: anchor, positive, negatives",
        "table:ColumnsSource",
        {
            "columns": Option(
                "anchor, positive and negatives in this order, separated by commas, if the table's own columns "
                "are others"
            ),
            "images": Option("those columns whose texts are paths of pictures, separated by commas"),
            "label": Option("column that says how similar a pair is; 'none': every row is a positive pair"),
            "min_label": Option("lowest label of a positive pair; needed if there are labels", _number),
            "negatives": _MOST_NEGATIVES,
            "delimiter": _DELIMITER,
            "quotes": _QUOTES,
        },
        ({"anchor", "positive"},),
    ),
    "swift": Format(
        "ms-swift's JSONL for embedding models: messages, positive_messages, negative_messages, each with images",
        "swift:SwiftSource",
        {
            "positives": _POSITIVES,
            "negatives": _MOST_NEGATIVES,
            "min_label": Option(
                "lowest label of a positive pair, for lines that have a label; 0.5 by default", _number
            ),
        },
        ({"messages", "positive_messages"},),
    ),
    "tevatron": Format(
        "Tevatron's queries, which name positives and negatives by id, and its corpus",
        "tevatron:TevatronSource",
        {
            "corpus": Option("file or directory of the documents"),
            "documents": Option(
                "'named' (default), or 'all': the rest of the corpus too, to be searched in", _one_of("named", "all")
            ),
            "positives": _POSITIVES,
            "negatives": _MOST_NEGATIVES,
            "missing_negatives": Option(
                "'problem' (default): a query that names one is not used; 'skip': it is, without it",
                _one_of("problem", "skip"),
            ),
        },
        ({"positive_document_ids"}, {"positive_passages"}),
    ),
    "mmeb": Format(
        "one data set of MMEB's training or evaluation data, on which VLM2Vec is trained and evaluated",
        "mmeb:MmebSource",
        {
            "split": Option(
                "which of several splits in a directory is read, such as 'original' or 'diverse_instruction'"
            )
        },
        ({"qry", "pos_text"}, {"qry_text", "tgt_text"}),
    ),
}


def open_source(name: str, path: Path, options: Mapping[str, str] | None = None) -> Source:
    """The source at ``path``.

    Args:
        name: one of ``FORMATS``, or ``auto``: detected from what the path holds.
        options: of the format, as given on a command line.

    Raises:
        UserError: there is no such path, format or option, an option has a wrong value, or what the source says.
    """
    if not path.exists():
        raise UserError(f"There is no input {path}; name a file or a directory of records.")
    chosen = _guess_format(path) if name == "auto" else name
    format = find_format(chosen)
    values = {}
    for option, text in (options or {}).items():
        if option not in format.options:
            hint = "it has none."
            if format.options:
                hint = f"did you mean '{nearest(option, format.options)}'? It has {', '.join(format.options)}."
            raise UserError(f"The format {chosen} has no option '{option}'; {hint}")
        try:
            values[option] = format.options[option].parse(text)
        except ValueError as error:
            raise UserError(f"The option {option}={text} of the format {chosen} cannot be used: {error}.") from None
    return format.open(path, values)


def find_format(name: str) -> Format:
    """Raises UserError if there is none of this name."""
    if name not in FORMATS:
        raise UserError(
            f"There is no format '{name}'; did you mean '{nearest(name, FORMATS)}'? There are auto, "
            f"{', '.join(FORMATS)}."
        )
    return FORMATS[name]


def _guess_format(path: Path) -> str:
    """The name of the path's format. Raises UserError if it is not clear, or a file cannot be read."""
    if path.is_dir() and _is_folder_of_pictures(path):
        return "folder"
    if not path.is_dir() and not has_ending(path, TABLE_ENDINGS):
        raise UserError(
            f"The format of {path} is not clear from its name; give it with --format: {', '.join(FORMATS)}."
        )
    rows = open_rows(path)
    columns = set(rows.columns)
    # From the last on: a table in a layout of its own may also have the columns of sentence-transformers.
    for name, format in reversed(FORMATS.items()):
        if any(alternative <= columns for alternative in format.columns):
            return name
    # Lines of which not one can be read are reported one by one by the project's own format.
    if has_ending(rows.files[0], JSONL_ENDINGS) and ("target" in columns or not columns):
        return "jsonl"
    raise UserError(
        f"The format of {path} is not clear from its columns ({listed(rows.columns)}); name them, as in --format table "
        "--option query.text=COLUMN --option target.text=COLUMN, or give another one of "
        f"{', '.join(FORMATS)} with --format."
    )


def _is_folder_of_pictures(directory: Path) -> bool:
    names = [path.name for path in directory.iterdir()]
    if not any(name in METADATA_NAMES for name in names) and any(
        has_ending(Path(name), TABLE_ENDINGS) for name in names
    ):
        return False
    inner = (name for _, names in listings(directory) for name in names)
    return any(is_picture(name) or name.lower().endswith(UNREAD_ENDINGS) or name in METADATA_NAMES for name in inner)
