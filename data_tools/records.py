"""Reading JSONL records and the images that they name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from pdfx.data.images import ImageError, decode_image, image_header
from pdfx.data.schema import Record, explain
from pdfx.errors import UserError


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """(line number from 1, record) of each line that is not blank; a record without a key gets its line's number as its key.

    Raises:
        UserError: the file is missing, a line does not follow the schema, or a key is there twice; the message names file, line and key.
    """
    lines_of_keys: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                record = _parse(path, number, line)
                if record.key in lines_of_keys:
                    raise UserError(f"{path} line {number}: the key '{record.key}' is already that of line {lines_of_keys[record.key]}; keys must be unique.")
                lines_of_keys[record.key] = number
                yield number, record
    except OSError as error:
        raise UserError(f"The records {path} cannot be read ({error.strerror}).") from None


def _parse(path: Path, number: int, line: bytes) -> Record:
    try:
        record = Record.model_validate_json(line)
    except ValidationError as error:
        raise UserError(f"{path} line {number}: {explain(error).removesuffix('.')}.") from None
    return record if record.key is not None else record.model_copy(update={"key": f"{number:09d}"})


class ImageFolder:
    """Reads the images that records name, below one folder.

    Args:
        records_path: for messages.
        root: the folder; a path in a record is relative to it.
        max_pixels: larger pictures are refused.
    """

    def __init__(self, records_path: Path, root: Path, max_pixels: int):
        self.records_path, self.root, self.max_pixels = records_path, root, max_pixels

    def locate(self, number: int, name: str) -> Path:
        """The file of the image ``name`` of line ``number``.

        Raises:
            UserError: the path leaves the folder (an absolute path or one with ``..``; links that the folder itself holds are followed), or
                there is no such file.
        """
        # Compared as text: a folder of links into a store is common, and its links are its owner's word, unlike the records.
        root = os.path.abspath(self.root)
        path = os.path.abspath(os.path.join(root, name))
        if "\0" in name or os.path.commonpath([root, path]) != root or path == root:
            raise UserError(f"{self.records_path} line {number}: the image path {name!r} leaves the image folder {self.root}; give a path below it.")
        if not os.path.isfile(path):
            raise UserError(f"{self.records_path} line {number}: there is no image {path}; correct the path or the image folder.")
        return Path(path)

    def read(self, number: int, name: str) -> tuple[bytes, str]:
        """The bytes of an image that decodes, as stored, and the extension that fits its content.

        Raises:
            UserError: like ``locate``, or the file is no sound picture.
        """
        path = self.locate(number, name)
        try:
            data = path.read_bytes()
            decode_image(data, self.max_pixels)
            return data, image_header(data, self.max_pixels)[0]
        except OSError as error:
            raise UserError(f"{self.records_path} line {number}: the image {path} cannot be read ({error.strerror}).") from None
        except ImageError as error:
            raise UserError(f"{self.records_path} line {number}: the image {path} cannot be used: {error}.") from None
