"""The files of a folder of pictures, in an order that does not depend on the file system, and captions in text files
beside the pictures: ``cat.txt`` for ``cat.jpg``."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_tools.sources.base import RAW_CHARACTERS
from data_tools.sources.values import FieldError, Row
from pdfx.errors import UserError, shortened
from pdfx.host.files import file_stamp
from pdfx.model.texts import is_blank

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
UNREAD_ENDINGS = (".svg", ".heic", ".heif", ".jxl", ".jp2", ".psd", ".eps", ".pdf", ".ico", ".tga", ".ppm", ".pgm")
"""Of pictures in other formats."""
_NAMED_KINDS, _ENDING_CHARACTERS = 8, 12
CAPTION_ENDING = ".txt"
_CAPTION_BYTES = 1 << 20
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def listings(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder within, itself included, and the sorted names of its files, without those that begin with a dot.

    Links to folders are followed; a folder that is there twice, by links, is read once.

    Raises:
        UserError: a folder cannot be read.
    """
    return ((place, names) for place, names, _ in _walk(folder))


def left_out(folder: Path) -> list[str]:
    """Sentences on the files and folders of a folder that are not read, if there are any."""
    counts: Counter[str] = Counter()
    for _, names, others in _walk(folder):
        read = [name for name in names if is_picture(name) or is_caption(name) or name in METADATA_NAMES]
        counts.update([*others, *(_kind(name) for name in names if name not in read)])
    if not counts:
        return []
    drawn = [ending for ending in UNREAD_ENDINGS if ending in counts]
    cure = f" Pictures of the kind {', '.join(drawn)} are not read: convert them, to PNG for example." if drawn else ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common(_NAMED_KINDS))
    return [f"Not read in {folder}: {kinds}.{cure}"]


def _walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, names of its files, a word on each thing in it that is left out)"""

    def refuse(error: OSError) -> None:
        raise UserError(f"The folder {error.filename} cannot be read ({error.strerror}); allow that, or move it away.")

    seen = {_inode(folder)}
    for directory, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        others = ["hidden"] * sum(name.startswith(".") for name in (*folders, *names))
        visible = sorted(name for name in folders if not name.startswith("."))
        # os.walk enters what is in this list.
        folders.clear()
        for name in visible:
            if (inode := _inode(os.path.join(directory, name))) not in seen:
                seen.add(inode)
                folders.append(name)
        others += ["link to a folder that is read already"] * (len(visible) - len(folders))
        yield Path(directory), sorted(name for name in names if not name.startswith(".")), others


def _inode(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _kind(name: str) -> str:
    return os.path.splitext(name)[1].lower()[:_ENDING_CHARACTERS] or "without ending"


def is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURE_ENDINGS)


def is_caption(name: str) -> bool:
    return name.lower().endswith(CAPTION_ENDING)


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
            reason = f"There is no picture ({', '.join(PICTURE_ENDINGS)}) in the folder {folder} or in folders in it."
            raise UserError(" ".join([reason, *left_out(folder)]))

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
            if self.captions != "lines" and seen < start:
                # A text file of one caption, before the start: it need not be opened.
                seen += 1
                continue
            for row in self._rows(place, picture, text_file):
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
        if picture is not None and text_file is not None:
            path = str(place / picture)
            try:
                captions = self._captions(place / text_file)
            except FieldError as error:
                yield Row(path, None, str(error))
                return
            several = {"picture": self._name(place, picture), "is_one_of_several": len(captions) > 1}
            for caption in captions:
                yield Row(path, {**several, "caption": caption}, raw=shortened(caption, RAW_CHARACTERS))
        elif picture is not None:
            missing = f"{os.path.splitext(picture)[0]}{CAPTION_ENDING}"
            yield Row(str(place / picture), None, f"there is no text file {missing} beside the picture")
        elif text_file is not None:
            stem = os.path.splitext(text_file)[0]
            unread = next((stem + ending for ending in UNREAD_ENDINGS if (place / (stem + ending)).exists()), None)
            problem = "there is no picture of the same name beside the text file"
            if unread:
                problem = (
                    f"{unread} beside the text file is of a format that is not read; convert it, to PNG for example"
                )
            yield Row(str(place / text_file), None, problem)

    def notes(self) -> list[str]:
        pairs = [(picture is None, text_file is None) for _, picture, text_file in self._pairs()]
        without_text, without_picture = pairs.count((False, True)), pairs.count((True, False))
        alone = (
            f"There are {without_text} pictures without a text file and {without_picture} text files without a picture "
            f"in {self.folder}."
        )
        return [*([alone] if any(map(any, pairs)) else []), *left_out(self.folder)]

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
