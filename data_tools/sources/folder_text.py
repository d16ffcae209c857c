"""Captions in text files beside the pictures: ``cat.txt`` for ``cat.jpg``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from pdfx.errors import UserError, shortened

from .cells import Problem
from .folder_files import CAPTION_ENDING, PICTURE_ENDINGS, is_caption, is_picture, listings
from .lines import RAW_CHARACTERS
from .rows import Row

_CAPTION_BYTES = 1 << 20


class TextFileCaptions:
    """Rows with the values ``picture`` (its name below the folder), ``caption`` and ``is_one_of_several``.

    A picture without a text file, or a text file without a picture, is a row with a problem.

    Args:
        folder: it is searched with all folders in it.
        captions: ``file`` or ``lines``; see ``folder.FolderSource``.

    Raises:
        UserError: there is no picture.
    """

    def __init__(self, folder: Path, captions: str):
        self.folder, self.captions = folder, captions
        if not any(is_picture(name) for _, names in listings(folder) for name in names):
            raise UserError(f"There is no picture ({', '.join(PICTURE_ENDINGS)}) in the folder {folder} or in folders in it.")

    def identity(self) -> str:
        """A hash of name and size of every picture and text file."""
        digest = hashlib.sha256()
        for place, names in listings(self.folder):
            for name in names:
                if is_picture(name) or is_caption(name):
                    digest.update(f"{self._name(place, name)}\0{_size(place / name)}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def total(self) -> int | None:
        return sum(1 for _ in self._pairs()) if self.captions == "file" else None

    def read(self, start: int = 0) -> Iterator[Row]:
        seen = 0
        for place, picture, text_file in self._pairs():
            # Where each text file is one caption, those before the start need not be opened.
            rows = [None] if self.captions == "file" and seen < start else self._rows(place, picture, text_file)
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
            orphans = text_files.keys() - {os.path.splitext(name)[0] for name in pictures}
            yield from ((place, picture, text_file) for picture, text_file in pairs)
            yield from ((place, None, text_files[stem]) for stem in sorted(orphans))

    def _rows(self, place: Path, picture: str | None, text_file: str | None) -> Iterator[Row]:
        if picture is None:
            yield Row(str(place / text_file), None, "there is no picture of the same name beside the text file")
            return
        path = place / picture
        if text_file is None:
            yield Row(str(path), None, f"there is no text file {os.path.splitext(picture)[0]}{CAPTION_ENDING} beside the picture")
            return
        try:
            captions = self._captions(place / text_file)
            for caption in captions:
                values = {"picture": self._name(place, picture), "caption": caption, "is_one_of_several": len(captions) > 1}
                yield Row(str(path), values, raw=shortened(caption, RAW_CHARACTERS))
        except Problem as error:
            yield Row(str(path), None, str(error))

    def _captions(self, path: Path) -> list[str]:
        try:
            with path.open("rb") as stream:
                data = stream.read(_CAPTION_BYTES + 1)
        except OSError as error:
            raise Problem(f"the text file {path.name} cannot be read ({error.strerror})") from None
        if len(data) > _CAPTION_BYTES:
            raise Problem(f"the text file {path.name} has more than {_CAPTION_BYTES >> 20} MiB")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Problem(f"the text file {path.name} is no valid UTF-8 (byte {error.start})") from None
        captions = [text.strip()] if self.captions == "file" else [line.strip() for line in text.split("\n")]
        captions = [caption for caption in captions if caption]
        if not captions:
            raise Problem(f"the text file {path.name} is empty")
        return captions

    def _name(self, place: Path, name: str) -> str:
        return (place.relative_to(self.folder) / name).as_posix()


def _size(path: Path) -> int:
    """Bytes of a file; -1 of a link that leads nowhere."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
