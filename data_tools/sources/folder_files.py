"""Walking through a folder in an order that does not depend on the file system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
CAPTION_ENDING = ".txt"
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def listings(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder within, itself included, and the sorted names of its files, without those that begin with a dot. Links to folders are not followed."""
    for directory, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(directory), sorted(name for name in names if not name.startswith("."))


def is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURE_ENDINGS)


def is_caption(name: str) -> bool:
    return name.lower().endswith(CAPTION_ENDING)
