"""Finding the pictures that records name: files below one folder, and members of the uncompressed tars therein."""

from __future__ import annotations

import os
import tarfile
from functools import lru_cache
from pathlib import Path

from pdfx.data.samples import PlainTarInfo
from pdfx.host.files import file_stamp
from pdfx.model.pictures import MAX_IMAGE_PIXELS, max_file_bytes


class PictureError(ValueError):
    """A picture cannot be had; the message is the part of a sentence that says why, ``kind`` what it is counted by."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class PictureFolder:
    """Reads pictures by name. Safe to pickle.

    Args:
        root: the folder, or a tar; names are relative to it. None if there is none.
        max_pixels: files that are larger than a picture of so many pixels can be are not read.
    """

    def __init__(self, root: Path | None, max_pixels: int = MAX_IMAGE_PIXELS):
        self.root = root
        self.max_bytes = max_file_bytes(max_pixels)

    def read(self, name: str) -> bytes:
        """The bytes of a picture: ``cats/1.png``, or ``pictures.tar/cats/1.png`` for the member ``cats/1.png`` of a
        tar.

        Raises:
            PictureError: the name leads out of the folder (an absolute path or one with ``..``; links that the folder
                itself holds are followed), there is no such picture, or it cannot be read.
        """
        path, start, size = self._find(name)
        try:
            return self._read(path, start, size)
        except OSError as error:
            raise PictureError("unreadable image", f"the image {path} cannot be read ({error.strerror})") from None

    def require(self, name: str) -> None:
        """Raises PictureError if ``read`` would, for all that can be found without reading the picture."""
        self._find(name)

    def stamp(self, name: str) -> str:
        """Size and time of the file that holds a picture."""
        try:
            path = self._locate(name)
        except PictureError:
            return "absent"
        return file_stamp(path if os.path.isfile(path) else self._tar_above(path) or path)

    def describe(self, name: str) -> str:
        """The picture's place, for messages."""
        return name if self.root is None else os.path.join(self.root, name)

    def _find(self, name: str) -> tuple[str, int, int]:
        """The file of a picture, where in it the picture begins, and its size in bytes."""
        path = self._locate(name)
        try:
            if os.path.isfile(path):
                return path, 0, os.path.getsize(path)
            if (tar := self._tar_above(path)) is None:
                raise PictureError("missing image", f"there is no image {path}")
            return tar, *_member(tar, os.path.relpath(path, tar))
        except OSError as error:
            raise PictureError("unreadable image", f"the image {path} cannot be read ({error.strerror})") from None

    def _locate(self, name: str) -> str:
        if self.root is None:
            raise PictureError("missing image", f"no image folder is given, and so no image {name!r}")
        # Compared as text: a folder of links into a store is common, and its links are its owner's word, unlike the
        # records.
        root = os.path.abspath(self.root)
        path = os.path.abspath(os.path.join(root, name))
        if "\0" in name or os.path.commonpath([root, path]) != root or path == root:
            raise PictureError("image path", f"the image path {name!r} leaves the image folder {self.root}")
        return path

    def _tar_above(self, path: str) -> str | None:
        """The tar file among the folders of a path, the image folder itself included."""
        root = os.path.abspath(self.root or path)
        while path != root:
            path = os.path.dirname(path)
            if path.endswith(".tar") and os.path.isfile(path):
                return path
        return None

    def _read(self, path: str, start: int, size: int) -> bytes:
        if size > self.max_bytes:
            raise PictureError(
                "oversized image",
                f"the image {path} has {size} bytes, more than the {self.max_bytes} that are read of one",
            )
        with open(path, "rb") as stream:
            stream.seek(start)
            data = stream.read(size)
        if len(data) != size:
            raise PictureError("unreadable image", f"{path} ends before the image does")
        return data


def _member(tar: str, name: str) -> tuple[int, int]:
    """Where a member's content begins in a tar, and its size in bytes."""
    places = _members(tar)
    if isinstance(places, str):
        raise PictureError(
            "unreadable image", f"the members of {tar} cannot be found: it is not a sound uncompressed tar ({places})"
        )
    if name not in places:
        raise PictureError("missing image", f"there is no image {name} in {tar}")
    return places[name]


@lru_cache(maxsize=8)
def _members(tar: str) -> dict[str, tuple[int, int]] | str:
    """Place and size of each plain file in a tar, or why they cannot be found. About 300 bytes of memory each."""
    places: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(tar, mode="r:", tarinfo=PlainTarInfo) as archive:
            while (member := archive.next()) is not None:
                if member.isreg() and not member.issparse():
                    places[os.path.normpath(member.name)] = member.offset_data, member.size
                # tarfile keeps a kilobyte of every member otherwise.
                archive.members.clear()  # type: ignore[attr-defined]  # public, but not in typeshed
    except OSError:
        raise
    # tarfile meets damaged bytes with many types of exception (TarError, ValueError, RecursionError, ...).
    except Exception as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return places
