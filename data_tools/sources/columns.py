"""The columns that sentence-transformers trains on: an anchor, its positive, and any number of negatives."""

from __future__ import annotations

import re
from typing import Any

from data_tools.sources.base import Paths
from data_tools.sources.tables.rows import RowsSource, listed, open_rows, require_columns
from data_tools.sources.tables.values import (
    FieldError,
    Pictures,
    Rows,
    is_missing,
    require_label,
    shown,
    side_of,
    text_of,
)
from pdfx.errors import UserError, shortened

LABEL_COLUMNS = ("label", "labels", "score", "scores")
"""Names that sentence-transformers never takes for inputs."""
_NEGATIVE = re.compile(r"(hard_)?negatives?([_ -]?\d+)?", re.IGNORECASE)


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
        self.settings = {
            "columns": columns,
            "images": images,
            "label": label,
            "min_label": min_label,
            "negatives": negatives,
        }
        self.settings |= {"delimiter": delimiter, "quotes": quotes}
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

    @property
    def used(self) -> list[str]:
        return [self.anchor, self.positive, *self.negatives, *([self.label] if self.label else [])]

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
        negatives = [
            self._side(name, cell, pictures) for name in self.negatives for cell in _elements(values.get(name))
        ]
        return {
            "query": self._side(self.anchor, values.get(self.anchor), pictures),
            "target": self._side(self.positive, values.get(self.positive), pictures),
            "negatives": negatives[: self.most_negatives],
        }

    def _side(self, name: str, value: Any, pictures: Pictures) -> dict[str, Any]:
        if isinstance(value, list):
            raise FieldError(f"'{name}' is a list of {len(value)}; only a column of negatives may hold several")
        if isinstance(value, dict) and value.keys() & {"text", "image"}:
            return side_of(
                text_of(value.get("text"), f"{name}.text"), pictures.names(value.get("image"), f"{name}.image"), name
            )
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


def _elements(cell: Any) -> list:
    return [one for one in (cell if isinstance(cell, list) else [cell]) if not is_missing(one)]
