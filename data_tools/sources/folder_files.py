"""Walking through a folder in an order that does not depend on the file system."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pdfx.errors import UserError

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
UNREAD_ENDINGS = (".svg", ".heic", ".heif", ".jxl", ".jp2", ".psd", ".eps", ".pdf", ".ico", ".tga", ".ppm", ".pgm")
"""Of pictures in other formats."""
_NAMED_KINDS, _ENDING_CHARACTERS = 8, 12
CAPTION_ENDING = ".txt"
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
    counts = Counter()
    for _, names, others in _walk(folder):
        counts.update(others)
        counts.update(
            _kind(name)
            for name in names
            if not is_picture(name) and not is_caption(name) and name not in METADATA_NAMES
        )
    if not counts:
        return []
    drawn = [ending for ending in UNREAD_ENDINGS if ending in counts]
    cure = f" Pictures of the kind {', '.join(drawn)} are not read: convert them, to PNG for example." if drawn else ""
    return [
        f"Not read in {folder}: "
        f"{', '.join(f'{count} {kind}' for kind, count in counts.most_common(_NAMED_KINDS))}.{cure}"
    ]


def _walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, names of its files, a word on each thing in it that is left out)"""

    def refuse(error: OSError) -> None:
        raise UserError(f"The folder {error.filename} cannot be read ({error.strerror}); allow that, or move it away.")

    seen = {_inode(folder)}
    for directory, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        others = ["hidden"] * sum(name.startswith(".") for name in (*folders, *names))
        visible = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [
            name
            for name in visible
            if (inode := _inode(os.path.join(directory, name))) not in seen and not seen.add(inode)
        ]
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
