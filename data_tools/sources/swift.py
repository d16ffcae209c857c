"""JSONL files of ms-swift for embedding models: conversations as anchor, positives and negatives, with a list of
pictures for each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from data_tools.sources.base import Paths, SourceRecord
from data_tools.sources.rows import RowsSource, open_rows, read_positives
from data_tools.sources.values import (
    FieldError,
    Pictures,
    as_record,
    is_missing,
    list_of,
    require_label,
    shown,
    side_of,
    without_markers,
)

_TAG = "<image>"
_OUTER_TAGS = re.compile(rf"\A(?:\s*{_TAG})+|(?:{_TAG}\s*)+\Z")
_UNREADABLE_TAGS = ("<video>", "<audio>")
_LABEL = "label"
_FIELDS = (_LABEL, *(f"{side}{name}" for side in ("", "positive_", "negative_") for name in ("messages", "images")))


class SwiftSource(RowsSource):
    """Records from ``messages``, ``positive_messages`` and ``negative_messages``, with ``images``, ``positive_images``
    and ``negative_images``.

    The contents of a conversation's messages are joined by line breaks, a system message first. Each ``<image>`` in
    them stands for the next picture of the conversation's list; the pictures become those of the side, and tags at the
    ends of the text are removed, and those within it become words as ``without_markers`` says.

    Args:
        paths: JSONL (or parquet): a file, several files, or a directory of them.
        positives: ``first``: a line gives one record, with its first positive. ``each``: one record for each positive.
        negatives: so many negatives of each line are kept.
        min_label: a line whose ``label`` is lower is not a positive pair, and so not used.

    Raises:
        UserError: a file cannot be read.
    """

    format = "swift"

    def __init__(self, paths: Paths, positives: str = "first", negatives: int | None = None, min_label: float = 0.5):
        self.rows, self.used = open_rows(paths), list(_FIELDS)
        self.settings = {"positives": positives, "negatives": negatives, "min_label": min_label}
        self.positives, self.negatives, self.min_label = positives, negatives, min_label

    def total(self) -> int | None:
        return super().total() if self.positives == "first" else None

    def notes(self) -> list[str]:
        notes = super().notes()
        if any(name.startswith("rejected_") for name in self.rows.all_columns):
            notes.append(
                "ms-swift's own training of embeddings takes hard negatives from 'negative_messages', a list of "
                "conversations."
            )
        return notes

    def records(self, start: int = 0) -> Iterator[SourceRecord]:
        positives = read_positives(self.rows, "positive_messages", self.positives == "each", start)
        return (as_record(row, partial(self._fields_with, positive)) for row, positive in positives)

    def _fields_with(self, positive: int, values: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
        if values.get(_LABEL) is not None:
            require_label(values[_LABEL], _LABEL, self.min_label)
        if is_missing(values.get("messages")):
            raise FieldError("'messages' is missing or empty: there is no query")
        targets = _conversations(values, "positive", pictures, [positive])
        if not targets:
            raise FieldError("'positive_messages' is missing or empty: there is no target")
        query = _conversation(values.get("messages"), values.get("images"), ("messages", "images"), pictures)
        wanted = range(self.negatives) if self.negatives is not None else None
        negatives = _conversations(values, "negative", pictures, wanted)
        return {"query": query, "target": targets[0], "negatives": negatives}


def _conversations(
    values: dict[str, Any], side: str, pictures: Pictures, wanted: Iterable[int] | None
) -> list[dict[str, Any]]:
    """The sides of ``positive_messages`` or ``negative_messages``, each with its list of pictures: those whose numbers
    are wanted, or all."""
    messages_field, images_field = f"{side}_messages", f"{side}_images"
    conversations = list_of(values.get(messages_field), messages_field)
    images = list_of(values.get(images_field), images_field)
    if images and len(images) != len(conversations):
        raise FieldError(
            f"'{messages_field}' has {len(conversations)} conversations and '{images_field}' {len(images)} lists; "
            "there must be as many of each"
        )
    sides = []
    for number in range(len(conversations)) if wanted is None else wanted:
        if number < len(conversations):
            fields = f"{messages_field}.{number}", f"{images_field}.{number}"
            sides.append(_conversation(conversations[number], images[number] if images else None, fields, pictures))
    return sides


def _conversation(messages: Any, images: Any, fields: tuple[str, str], pictures: Pictures) -> dict[str, Any]:
    messages_field, images_field = fields
    texts, inline = [], []
    for number, message in enumerate(list_of(messages, messages_field)):
        field = f"{messages_field}.{number}"
        if not isinstance(message, dict) or "content" not in message:
            raise FieldError(f"'{field}' is {shown(message)}: it must be an object with 'role' and 'content'")
        text, own = _content(message["content"], f"{field}.content", pictures)
        texts.append(text)
        inline += own
    text = "\n".join(texts)
    for tag in _UNREADABLE_TAGS:
        if tag in text:
            raise FieldError(f"'{messages_field}' has the tag {tag}; only texts and pictures can be read")
    names = pictures.names(images, images_field)
    if inline and names:
        raise FieldError(f"'{messages_field}' holds pictures itself, so '{images_field}' must be empty")
    if text.count(_TAG) != len(names):
        raise FieldError(
            f"'{messages_field}' has {text.count(_TAG)} tags {_TAG} and '{images_field}' {len(names)} pictures; "
            "there must be as many of each"
        )
    return side_of(without_markers(_OUTER_TAGS.sub("", text)), inline or names, messages_field)


def _content(content: Any, field: str, pictures: Pictures) -> tuple[str, list[str]]:
    """The text of a message and the pictures that it holds itself: content is a text, or a list of parts as chat
    interfaces take them."""
    if isinstance(content, str):
        return content, []
    text, names = "", []
    for number, part in enumerate(list_of(content, field)):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text += part["text"]
        elif kind in ("image", "image_url"):
            value = part.get(kind)
            value = value["url"] if isinstance(value, dict) and "url" in value else value
            names += pictures.names(value, f"{field}.{number}")
        else:
            raise FieldError(f"'{field}.{number}' is {shown(part)}: it must be a part of type 'text' or 'image'")
    return text, names
