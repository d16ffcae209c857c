"""Tables whose columns are records' parts: those that settings name, or those in the order of sentence-transformers."""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Any

from data_tools.sources.base import Paths
from data_tools.sources.rows import RowsSource, listed, open_rows, others, require_columns
from data_tools.sources.values import (
    FieldError,
    Pictures,
    Rows,
    identity_of,
    is_missing,
    list_of,
    require_label,
    shown,
    side_of,
    text_of,
)
from pdfx.errors import UserError, shortened

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
LABEL_COLUMNS = ("label", "labels", "score", "scores")
"""Names that sentence-transformers never takes for inputs."""
_NEGATIVE = re.compile(r"(hard_)?negatives?([_ -]?\d+)?", re.IGNORECASE)


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
        self.used = list(dict.fromkeys(name for names in self.columns.values() for name in names))
        if columns:
            raise TypeError(f"there are no such parts of a record: {', '.join(columns)}")
        for side in ("query", "target"):
            if not self.columns[f"{side}.text"] and not self.columns[f"{side}.images"]:
                raise UserError(
                    f"Which columns of {self.rows.files[0]}{others(self.rows.files)} hold the {side} is not said; say "
                    f"it as in {side}.text=COLUMN or {side}.images=COLUMN. There are: {listed(self.rows.columns)}."
                )

    def _columns_of(self, part: str, given: str | None) -> list[str]:
        if not given:
            return []
        names = [given] if part in _SINGLE or given in self.rows.columns else _split(given)
        require_columns(self.rows, names, f"{part}={given}")
        return names

    def _fields(self, values: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
        fields: dict[str, Any] = {side: self._side(side, values, pictures) for side in ("query", "target")}
        fields["negatives"] = self._negatives(values, pictures)
        for part in _SINGLE:
            for name in self.columns[part]:
                if not is_missing(value := values.get(name)):
                    is_list = part == "candidates"
                    fields[part] = _identities(value, name) if is_list else identity_of(value, name)
        return fields

    def _side(self, side: str, values: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
        of_texts, of_images = self.columns[f"{side}.text"], self.columns[f"{side}.images"]
        texts = [text_of(values.get(name), name) for name in of_texts]
        images = [image for name in of_images for image in pictures.names(values.get(name), name)]
        return side_of("\n".join(filter(None, texts)), images, "', '".join([*of_texts, *of_images]))

    def _negatives(self, values: dict[str, Any], pictures: Pictures) -> list[dict[str, Any]]:
        # An empty cell keeps its place beside the others.
        texts = [(name, cell) for name in self.columns["negatives.text"] for cell in _as_list(values.get(name))]
        images = [(name, cell) for name in self.columns["negatives.images"] for cell in _as_list(values.get(name))]
        if texts and images and len(texts) != len(images):
            raise FieldError(
                f"there are {len(texts)} texts and {len(images)} pictures of negatives; there must be as many of "
                "each, empty ones included"
            )
        negatives = []
        for (text_name, text), (image_name, image) in zip_longest(texts, images, fillvalue=("", None)):
            if not is_missing(text) or not is_missing(image):
                names = pictures.names(image, image_name)
                negatives.append(side_of(text_of(text, text_name), names, image_name or text_name))
        return negatives


def _identities(value: Any, field: str) -> list[str]:
    return [identity_of(one, field) for one in list_of(value, field)]


class ColumnsSource(RowsSource):
    """Records from tables in the layout of sentence-transformers, where the order of columns decides: anchor, positive,
    negatives.

    Columns named ``anchor`` and ``positive`` are found wherever they stand, and columns after the second must be named
    like negatives. A cell is a text, a picture (bytes or Hugging Face's ``{"bytes", "path"}``), or ``{"text",
    "image"}`` with both; a negative's cell may hold a list of them, or nothing.

    Args:
        paths: parquet, CSV, TSV or JSONL: a file, several files of one kind, or a directory of them.
        columns: the columns to read, in order, separated by commas. By default all but labels.
        images: those columns whose texts are paths of pictures, separated by commas.
        label: the column that says which rows are positive pairs; ``none`` takes every row for one. By default a column
            of ``LABEL_COLUMNS``.
        min_label: rows with a lower label are not positive pairs, and so not used. To be given if there is a label.
        negatives: so many negatives of each row are kept.
        delimiter, quotes: see ``rows.open_rows``.

    Raises:
        UserError: a file cannot be read, or the columns' part is not clear.
    """

    format = "columns"

    def __init__(
        self,
        paths: Paths,
        columns: str | None = None,
        images: str | None = None,
        label: str | None = None,
        min_label: float | None = None,
        negatives: int | None = None,
        delimiter: str | None = None,
        quotes: bool = True,
    ):
        self.rows = open_rows(paths, delimiter, quotes)
        self.settings = {"columns": columns, "images": images, "label": label, "min_label": min_label}
        self.settings |= {"negatives": negatives, "delimiter": delimiter, "quotes": quotes}
        self.most_negatives = negatives
        self.images = _split(images)
        require_columns(self.rows, self.images, f"images={images}")
        self.label = self._label_column(label, min_label)
        self.min_label = min_label
        self.anchor, self.positive, *self.negatives = self._given(columns) if columns else _told_apart(self.rows, label)
        for name in self.images:
            if name not in (self.anchor, self.positive, *self.negatives):
                raise UserError(
                    f"images={images} names '{shortened(name, 80)}', which is none of the columns that are read; "
                    "leave it out."
                )
        self.used = [self.anchor, self.positive, *self.negatives, *([self.label] if self.label else [])]

    def _given(self, columns: str) -> list[str]:
        names = _split(columns)
        require_columns(self.rows, names, f"columns={columns}")
        if len(names) < 2:
            raise UserError(
                f"columns={columns} must name the anchor's column and the positive's, and then those of negatives if "
                "there are any."
            )
        return names

    def _label_column(self, label: str | None, min_label: float | None) -> str | None:
        name = label or next((name for name in LABEL_COLUMNS if name in self.rows.columns), None)
        name = None if label == "none" else name
        if name is None and min_label is not None:
            raise UserError(
                f"min_label={min_label:g} has no effect, since no column of labels is read; name one with "
                "label=COLUMN, or leave it out."
            )
        if name is not None:
            require_columns(self.rows, [name], f"label={name}")
            if min_label is None:
                raise UserError(
                    f"{self.rows.files[0]} has the labels '{name}', so not every row need be a positive pair; say from "
                    "which label on a row is one, as in min_label=0.75, or take every row for one with label=none."
                )
        return name

    def _fields(self, values: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
        if self.label:
            require_label(values.get(self.label), self.label, self.min_label)
        cells = [(name, cell) for name in self.negatives for cell in _as_list(values.get(name)) if not is_missing(cell)]
        return {
            "query": self._side(self.anchor, values.get(self.anchor), pictures),
            "target": self._side(self.positive, values.get(self.positive), pictures),
            "negatives": [self._side(name, cell, pictures) for name, cell in cells][: self.most_negatives],
        }

    def _side(self, name: str, value: Any, pictures: Pictures) -> dict[str, Any]:
        if isinstance(value, list):
            raise FieldError(f"'{name}' is a list of {len(value)}; only a column of negatives may hold several")
        if isinstance(value, dict) and value.keys() & {"text", "image"}:
            images = pictures.names(value.get("image"), f"{name}.image")
            return side_of(text_of(value.get("text"), f"{name}.text"), images, name)
        if name in self.images or isinstance(value, (bytes, dict)):
            return side_of("", pictures.names(value, name), name)
        if value is not None and not isinstance(value, str):
            raise FieldError(f"'{name}' is {shown(value)}: it must be a text or a picture")
        return side_of(value or "", [], name)


def _told_apart(rows: Rows, label: str | None) -> list[str]:
    """Anchor, positive and negatives among the columns of a table."""
    names = [name for name in rows.columns if name not in LABEL_COLUMNS and name != label]
    if {"anchor", "positive"} <= set(names):
        names = ["anchor", "positive", *(name for name in names if name not in ("anchor", "positive"))]
    unclear = [name for name in names[2:] if not _NEGATIVE.fullmatch(name)]
    if len(names) < 2 or unclear:
        raise UserError(
            f"The columns of {rows.files[0]} are {listed(rows.columns)}, and which are anchor, positive and "
            "negatives is not clear; name them in this order, as in columns=question,answer,negative_1."
        )
    return names


def _split(names: str | None) -> list[str]:
    return [name.strip() for name in names.split(",")] if names else []


def _as_list(cell: Any) -> list:
    return cell if isinstance(cell, list) else [cell]
