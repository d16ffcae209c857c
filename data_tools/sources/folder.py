"""A folder of pictures with captions: in Hugging Face's metadata files, or in a text file beside each picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data_tools.sources.base import SourceRecord
from data_tools.sources.folder_files import (
    METADATA_NAMES,
    TextFileCaptions,
    is_caption,
    is_picture,
    left_out,
    listings,
)
from data_tools.sources.rows import listed, notes_on, open_rows, require_columns
from data_tools.sources.values import FieldError, Pictures, Row, Rows, as_record, text_of
from pdfx.errors import UserError
from pdfx.host.files import file_stamp
from pdfx.model.texts import is_blank

_FILE_NAME = "file_name"
_CAPTION_COLUMNS = ("text", "caption", "captions")


class FolderSource:
    """Pairs of picture and caption. Where the folder, or a folder in it, has a ``metadata`` file, these files decide;
    else the text files beside pictures do.

    A picture with several captions gives a record for each. Where the picture is the target, they have the same
    identity by its bytes; if the caption is, captions that are given together have the picture's name as identity,
    so that they are not negatives of one another.

    Args:
        folder: it is searched with all folders in it, linked ones included, in the order of names; what begins with a
            dot is left out.
        query: which of the two is the query: ``text`` or ``image``.
        captions: ``file``: a text file is one caption. ``lines``: each of its lines is one. ``first``: its first line,
            or the first text of a list in metadata, is the only one.
        text: the column of captions in metadata files; by default one of ``text``, ``caption``, ``captions``, or the
            only one beside ``file_name``.

    Raises:
        UserError: there is no such folder, it holds no pictures, the column of captions is not clear, or an option has
            no effect there.
    """

    def __init__(self, folder: str | Path, query: str = "text", captions: str = "file", text: str | None = None):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"There is no folder {self.folder} of pictures.")
        self.query = query
        self.settings = {"query": query, "captions": captions, "text": text}
        metadata = MetadataCaptions(self.folder, text, captions == "first")
        if metadata.files and captions == "lines":
            raise UserError(
                f"captions=lines is for text files, and in {self.folder} metadata files have the captions; "
                "leave it out."
            )
        if text is not None and not metadata.files:
            raise UserError(
                f"text={text} names a column of metadata files, and {self.folder} has none "
                f"({', '.join(METADATA_NAMES)}); leave it out."
            )
        self.pairs: MetadataCaptions | TextFileCaptions = (
            metadata if metadata.files else TextFileCaptions(self.folder, captions)
        )

    def identity(self) -> dict:
        return {"format": "folder", "files": self.pairs.identity(), **self.settings}

    def total(self) -> int | None:
        return self.pairs.total()

    def notes(self) -> list[str]:
        return self.pairs.notes()

    def records(self, start: int = 0) -> Iterator[SourceRecord]:
        return (as_record(row, self._fields) for row in self.pairs.read(start))

    def _fields(self, values: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
        picture, caption = {"images": [values["picture"]]}, {"text": values["caption"]}
        if self.query == "text":
            return {"query": caption, "target": picture}
        identity = values["picture"] if values["is_one_of_several"] else None
        return {"query": picture, "target": caption, "target_id": identity}


class MetadataCaptions:
    """Rows with the values ``picture`` (its name below the folder), ``caption`` and ``is_one_of_several``.

    Args:
        folder: metadata files are looked for in it and in all folders in it; each names pictures relative to its own
            folder.
        text: the column of captions, each a text or a list of texts.
        is_first_only: take only the first caption of a list.

    Raises:
        UserError: a metadata file cannot be read, lacks ``file_name``, or its column of captions is not clear.
    """

    def __init__(self, folder: Path, text: str | None, is_first_only: bool = False):
        self.folder, self.is_first_only = folder, is_first_only
        self.files: list[tuple[Path, Rows, str]] = []
        for place, names in listings(folder):
            for name in names:
                if name in METADATA_NAMES:
                    rows = open_rows(place / name)
                    require_columns(rows, [_FILE_NAME], "Hugging Face's image folder layout")
                    self.files.append((place, rows, _caption_column(rows, text)))

    def identity(self) -> list[str]:
        return [
            f"{path.relative_to(self.folder).as_posix()}: {file_stamp(path)}"
            for _, rows, _ in self.files
            for path in rows.files
        ]

    def total(self) -> int | None:
        """None of large files: they are not read beforehand, and any row may have a list of captions."""
        return sum(1 for _ in self._read()) if None not in [rows.total() for _, rows, _ in self.files] else None

    def notes(self) -> list[str]:
        counts = Counter(is_picture(name) - is_caption(name) for _, names in listings(self.folder) for name in names)
        rows = sum(rows.total() or sum(1 for _ in rows.read(0, [text])) for _, rows, text in self.files)
        notes = []
        if counts[1] > rows:
            notes.append(f"There are {counts[1]} pictures in {self.folder}, and its metadata files have {rows} rows.")
        if counts[-1]:
            notes.append(
                f"{counts[-1]} text files beside them are not read, since the metadata files have the captions."
            )
        of_files = (note for _, rows, text in self.files for note in notes_on(rows, [_FILE_NAME, text]))
        return [*notes, *left_out(self.folder), *of_files]

    def read(self, start: int = 0) -> Iterator[Row]:
        return islice(self._read(), start, None)

    def _read(self) -> Iterator[Row]:
        for place, rows, text in self.files:
            for row in rows.read(0, [_FILE_NAME, text]):
                if row.values is None:
                    yield row
                    continue
                given = row.values.get(text)
                captions = given if isinstance(given, list) and given else [given]
                captions = captions[:1] if self.is_first_only else captions
                for caption in captions:
                    try:
                        pair = self._pair(place, row.values, text, caption)
                    except FieldError as error:
                        yield Row(row.origin, None, str(error), row.raw)
                    else:
                        yield Row(row.origin, {**pair, "is_one_of_several": len(captions) > 1}, raw=row.raw)

    def _pair(self, place: Path, values: dict[str, Any], text: str, caption: Any) -> dict[str, Any]:
        name = text_of(values.get(_FILE_NAME), _FILE_NAME)
        if not name:
            raise FieldError(f"'{_FILE_NAME}' is empty")
        caption = text_of(caption or None, text)
        if is_blank(caption):
            raise FieldError(f"'{text}' is empty: the picture {name} has no caption")
        return {"picture": (place.relative_to(self.folder) / name).as_posix(), "caption": caption}


def _caption_column(rows: Rows, text: str | None) -> str:
    if text is not None:
        require_columns(rows, [text], f"text={text}")
        return text
    candidates = [name for name in rows.columns if name != _FILE_NAME]
    named = [name for name in _CAPTION_COLUMNS if name in candidates]
    if len(named) == 1 or len(candidates) == 1:
        return (named or candidates)[0]
    raise UserError(
        f"Which column of {rows.files[0]} holds the captions is not clear; say it as in text=COLUMN. There are: "
        f"{listed(candidates)}."
    )
