"""A folder of pictures with captions: in Hugging Face's metadata files, or in a text file beside each picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_tools.sources.base import SourceRecord
from data_tools.sources.folder_files import METADATA_NAMES
from data_tools.sources.folder_metadata import MetadataCaptions
from data_tools.sources.folder_text import TextFileCaptions
from data_tools.sources.tables.values import Pictures, as_record
from pdfx.errors import UserError


class FolderSource:
    """Pairs of picture and caption. Where the folder, or a folder in it, has a ``metadata`` file, these files decide;
    else the text files beside pictures do.

    A picture with several captions gives a record for each. Where the picture is the target, they have the same
    identity by its bytes; where the caption is, captions that are given together have the picture's name as identity,
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
        self.pairs = metadata if metadata.files else TextFileCaptions(self.folder, captions)

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
        return {
            "query": picture,
            "target": caption,
            "target_id": values["picture"] if values["is_one_of_several"] else None,
        }
