"""Captions in text files beside the pictures: ``cat.txt`` for ``cat.jpg``."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from data_tools.sources.folder_files import (
    CAPTION_ENDING,
    PICTURE_ENDINGS,
    UNREAD_ENDINGS,
    is_caption,
    is_picture,
    left_out,
    listings,
)
from data_tools.sources.lines import RAW_CHARACTERS
from data_tools.sources.tables.values import FieldError, Row
from pdfx.errors import UserError, shortened
from pdfx.host.files import file_stamp
from pdfx.model.texts import is_blank

_CAPTION_BYTES = 1 << 20


class TextFileCaptions:
    """Rows with the values ``picture`` (its name below the folder), ``caption`` and ``is_one_of_several``.

    A picture without a text file, or a text file without a picture, is a row with a problem.

    Args:
        folder: it is searched with all folders in it.
        captions: ``file``, ``first`` or ``lines``; see ``folder.FolderSource``.

    Raises:
        UserError: there is no picture.
    """

    def __init__(self, folder: Path, captions: str):
        self.folder, self.captions = folder, captions
        if not any(is_picture(name) for _, names in listings(folder) for name in names):
            reason = " ".join(
                [
                    f"There is no picture ({', '.join(PICTURE_ENDINGS)}) in the folder {folder} or in folders in it.",
                    *left_out(folder),
                ]
            )
            raise UserError(reason)

    def identity(self) -> list[str]:
        """A hash of the names of all pictures and text files, and of the text files' stamps."""
        digest = hashlib.sha256()
        for place, names in listings(self.folder):
            for name in names:
                if is_picture(name) or is_caption(name):
                    stamp = file_stamp(place / name) if is_caption(name) else ""
                    digest.update(f"{self._name(place, name)}\0{stamp}\0".encode(errors="surrogateescape"))
        return [f"{self.folder.name}: {digest.hexdigest()}"]

    def total(self) -> int | None:
        return sum(1 for _ in self._pairs()) if self.captions != "lines" else None

    def read(self, start: int = 0) -> Iterator[Row]:
        seen = 0
        for place, picture, text_file in self._pairs():
            # Text files of one caption each that are before the start need not be opened.
            rows = [None] if self.captions != "lines" and seen < start else self._rows(place, picture, text_file)
            for row in rows:
                seen += 1
                if seen > start:
                    yield row

    def _pairs(self) -> Iterator[tuple[Path, str | None, str | None]]:
        """(folder, picture, text file) in order, with None in place of what is missing."""
        for place, names in listings(self.folder):
            text_files = {os.path.splitext(name)[0]: name for name in names if is_caption(name)}
            pictures = [name for name in names if is_picture(name)]
            pairs = [(name, text_files.get(os.path.splitext(name)[0])) for name in pictures]
            orphans = {name for name in names if is_caption(name)} - {text_file for _, text_file in pairs}
            yield from ((place, picture, text_file) for picture, text_file in pairs)
            yield from ((place, None, name) for name in sorted(orphans))

    def _rows(self, place: Path, picture: str | None, text_file: str | None) -> Iterator[Row]:
        if picture is None:
            stem = os.path.splitext(text_file)[0]
            unread = next((stem + ending for ending in UNREAD_ENDINGS if (place / (stem + ending)).exists()), None)
            what = f"{unread} beside the text file is of a format that is not read; convert it, to PNG for example"
            yield Row(
                str(place / text_file),
                None,
                what if unread else "there is no picture of the same name beside the text file",
            )
            return
        path = place / picture
        if text_file is None:
            yield Row(
                str(path),
                None,
                f"there is no text file {os.path.splitext(picture)[0]}{CAPTION_ENDING} beside the picture",
            )
            return
        try:
            captions = self._captions(place / text_file)
            for caption in captions:
                values = {
                    "picture": self._name(place, picture),
                    "caption": caption,
                    "is_one_of_several": len(captions) > 1,
                }
                yield Row(str(path), values, raw=shortened(caption, RAW_CHARACTERS))
        except FieldError as error:
            yield Row(str(path), None, str(error))

    def notes(self) -> list[str]:
        pairs = [(picture is None, text_file is None) for _, picture, text_file in self._pairs()]
        alone = [
            f"{pairs.count((False, True))} pictures without a text file",
            f"{pairs.count((True, False))} text files without a picture",
        ]
        return [
            *([f"There are {' and '.join(alone)} in {self.folder}."] if any(map(any, pairs)) else []),
            *left_out(self.folder),
        ]

    def _captions(self, path: Path) -> list[str]:
        if path.exists() and not path.is_file():
            raise FieldError(f"the text file {path.name} is not a file that can be read")
        try:
            with path.open("rb") as stream:
                data = stream.read(_CAPTION_BYTES + 1)
        except OSError as error:
            raise FieldError(f"the text file {path.name} cannot be read ({error.strerror})") from None
        if len(data) > _CAPTION_BYTES:
            raise FieldError(f"the text file {path.name} has more than {_CAPTION_BYTES >> 20} MiB")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise FieldError(f"the text file {path.name} is not valid UTF-8 (byte {error.start})") from None
        captions = [text.strip()] if self.captions == "file" else [line.strip() for line in re.split(r"[\r\n]+", text)]
        captions = [caption for caption in captions if not is_blank(caption)][: 1 if self.captions == "first" else None]
        if not captions:
            raise FieldError(f"the text file {path.name} is empty")
        return captions

    def _name(self, place: Path, name: str) -> str:
        return (place.relative_to(self.folder) / name).as_posix()
