"""Tables of any columns: parquet, CSV, TSV and JSONL, with a setting for each part of a record that says which columns
hold it."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from data_tools.sources.base import Paths
from data_tools.sources.tables.rows import RowsSource, listed, open_rows, others, require_columns
from data_tools.sources.tables.values import (
    FieldError,
    Pictures,
    identity_of,
    is_missing,
    list_of,
    side_of,
    text_of,
)
from pdfx.errors import UserError

PARTS = (
    "query.text",
    "query.images",
    "target.text",
    "target.images",
    "negatives.text",
    "negatives.images",
    "key",
    "target_id",
    "candidates",
)
_SINGLE = ("key", "target_id", "candidates")


class TableSource(RowsSource):
    """Records from the columns of tables.

    A part of a record takes one column, or several that are separated by commas: texts are joined by a line break,
    pictures follow one another, and each column of negatives holds one more negative, or a list of them. An empty cell
    adds nothing. Pictures are paths, bytes, or Hugging Face's ``{"bytes", "path"}``, or lists of these.

    Args:
        paths: a file, several files of one kind, or a directory of them.
        delimiter, quotes: see ``rows.open_rows``.
        columns: the columns of each of ``PARTS``, as in ``**{"query.text": "caption"}``. Query and target need one
            each.

    Raises:
        UserError: a file cannot be read, or a column is missing.
    """

    format = "table"

    def __init__(self, paths: Paths, delimiter: str | None = None, quotes: bool = True, **columns: str):
        self.rows = open_rows(paths, delimiter, quotes)
        self.settings = {"delimiter": delimiter, "quotes": quotes, **columns}
        self.columns = {part: self._columns_of(part, columns.pop(part, None)) for part in PARTS}
        if columns:
            raise TypeError(f"there are no such parts of a record: {', '.join(columns)}")
        for side in ("query", "target"):
            if not self.columns[f"{side}.text"] and not self.columns[f"{side}.images"]:
                raise UserError(
                    f"Which columns of {self.rows.files[0]}{others(self.rows.files)} hold the {side} is not said; say "
                    f"it as in {side}.text=COLUMN or {side}.images=COLUMN. There are: {listed(self.rows.columns)}."
                )

    @property
    def used(self) -> list[str]:
        return list(dict.fromkeys(name for names in self.columns.values() for name in names))

    def _columns_of(self, part: str, given: str | None) -> list[str]:
        if not given:
            return []
        names = (
            [given] if part in _SINGLE or given in self.rows.columns else [name.strip() for name in given.split(",")]
        )
        require_columns(self.rows, names, f"{part}={given}")
        return names

    def _fields(self, values: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
        fields = {side: self._side(side, values, pictures) for side in ("query", "target")}
        fields["negatives"] = self._negatives(values, pictures)
        for part in _SINGLE:
            for name in self.columns[part]:
                if not is_missing(values.get(name)):
                    fields[part] = (
                        _identities(values[name], name) if part == "candidates" else identity_of(values[name], name)
                    )
        return fields

    def _side(self, side: str, values: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
        texts = [text_of(values.get(name), name) for name in self.columns[f"{side}.text"]]
        images = [image for name in self.columns[f"{side}.images"] for image in pictures.names(values.get(name), name)]
        return side_of(
            "\n".join(filter(None, texts)),
            images,
            "', '".join([*self.columns[f"{side}.text"], *self.columns[f"{side}.images"]]),
        )

    def _negatives(self, values: dict[str, Any], pictures: Pictures) -> list[dict[str, Any]]:
        texts = [(name, cell) for name in self.columns["negatives.text"] for cell in _elements(values.get(name))]
        images = [(name, cell) for name in self.columns["negatives.images"] for cell in _elements(values.get(name))]
        if texts and images and len(texts) != len(images):
            raise FieldError(
                f"there are {len(texts)} texts and {len(images)} pictures of negatives; there must be as many of "
                "each, empty ones included"
            )
        negatives = []
        for (text_name, text), (image_name, image) in zip_longest(texts, images, fillvalue=("", None)):
            if not is_missing(text) or not is_missing(image):
                negatives.append(
                    side_of(text_of(text, text_name), pictures.names(image, image_name), image_name or text_name)
                )
        return negatives


def _identities(value: Any, field: str) -> list[str]:
    return [identity_of(one, field) for one in list_of(value, field)]


def _elements(cell: Any) -> list:
    """Each negative of a cell; an empty cell keeps its place beside the others."""
    return cell if isinstance(cell, list) else [cell]
