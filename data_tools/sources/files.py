"""Finding the input files of a source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pdfx.errors import UserError, shortened

_NAMES_CHARACTERS = 300
Paths = str | Path | Sequence[str | Path]
"""One file, several files, or a directory of files."""


def input_files(paths: Paths, endings: tuple[str, ...]) -> list[Path]:
    """The files in the order given; a directory stands for its own files with one of the ``endings``, sorted by name,
    without those below it.

    Raises:
        UserError: a path does not exist or cannot be read, a directory has no such file, or no path is given.
    """
    given = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not given:
        raise UserError(f"No input is given; name a {_listed(endings)} file or a directory of them.")
    files: list[Path] = []
    for path in given:
        files += _files_of_directory(path, endings) if path.is_dir() else [path]
    for path in files:
        # Opening a pipe could wait for ever, and a device has no end.
        if path.exists() and not path.is_file():
            raise UserError(f"The input {path} is a pipe or a device; write its content to a file.")
        try:
            path.open("rb").close()
        except OSError as error:
            raise UserError(f"The input {path} cannot be read ({error.strerror}).") from None
    return files


def left_in_folders(paths: Paths, files: list[Path]) -> list[str]:
    """A sentence on what the directories among ``paths`` hold besides the files that are read, if there is anything."""
    given = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    names = [child.name for path in given if path.is_dir() for child in sorted(path.iterdir()) if child not in files]
    return [f"Not read in {given[0]}: {shortened(', '.join(names), _NAMES_CHARACTERS)}."] if names else []


def has_ending(path: Path, endings: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(endings)


def _files_of_directory(directory: Path, endings: tuple[str, ...]) -> list[Path]:
    found = sorted(
        path
        for path in directory.iterdir()
        if path.is_file() and has_ending(path, endings) and not path.name.startswith(".")
    )
    if not found:
        raise UserError(
            f"There is no {_listed(endings)} file in the directory {directory}; name the files, or the directory "
            "that holds them itself."
        )
    return found


def _listed(endings: tuple[str, ...]) -> str:
    return " or ".join(endings)
