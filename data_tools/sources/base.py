"""What every importer gives the builder: an ordered sequence of records of the one schema, each with the place that it
comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pdfx.data.schema import Record
from pdfx.errors import UserError, shortened
from pdfx.host.files import file_stamp

BELOW_LABEL = "below min_label"
RAW_CHARACTERS = 2000
"""What a quarantine file shows of a record, from its beginning."""
_NAMES_CHARACTERS = 300


@dataclass
class SourceRecord:
    """One record of a source, or why there is none.

    Attributes:
        origin: where it stands, for messages: "pairs.jsonl line 12", "train.parquet row 7".
        record: None if ``problem`` says why. A record without a key is given one by the builder, from its number in
            the source.
        problem: the part of a sentence that says why the record cannot be used; None if it can.
        pictures: bytes of those images that the source itself holds, by the name that the record gives them. All other
            names are looked up by the builder below the image folder: ``cats/1.png``, or ``pictures.tar/cats/1.png``
            for a member of an uncompressed tar.
        raw: what a quarantine file shows of a record that cannot be used.
        kind: in a few words, what records with such a problem are counted by; ``BELOW_LABEL`` is not counted as bad.
    """

    origin: str
    record: Record | None = None
    problem: str | None = None
    pictures: dict[str, bytes] = field(default_factory=dict)
    raw: str = ""
    kind: str = "unusable record"


class Source(Protocol):
    """An importer. Its sequence is a function of its files and settings alone, so that a build that was stopped can go
    on by number.

    A constructor raises UserError if the files as a whole cannot be read (missing file, missing column); what is
    wrong with one record is reported by ``SourceRecord.problem`` instead, so that it never stops or silently shrinks a
    build.
    """

    def identity(self) -> dict:
        """Plain values that decide the sequence: the format's settings, and name, size and time of each input file."""

    def total(self) -> int | None:
        """How many records there are exactly, if that is cheap to know: a build that reads another number ends with an
        error."""

    def notes(self) -> list[str]:
        """Sentences on what of the input is not used: columns, files."""

    def records(self, start: int = 0) -> Iterator[SourceRecord]:
        """The records from number ``start`` on, without reading images that lie outside of the source's own files."""


def file_identity(paths: list[Path]) -> list[str]:
    """Name and stamp of each file, for ``Source.identity``."""
    return [f"{path.name}: {file_stamp(path)}" for path in paths]


Paths = str | Path | Sequence[str | Path]
"""One file, several files, or a directory of files."""


def as_list(paths: Paths) -> list[Path]:
    return [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]


def input_files(paths: Paths, endings: tuple[str, ...]) -> list[Path]:
    """The files in the order given; a directory stands for its own files with one of the ``endings``, sorted by name,
    without those below it.

    Raises:
        UserError: a path does not exist or cannot be read, a directory has no such file, or no path is given.
    """
    given, kinds = as_list(paths), " or ".join(endings)
    if not given:
        raise UserError(f"No input is given; name a {kinds} file or a directory of them.")
    files: list[Path] = []
    for path in given:
        found = _files_of_directory(path, endings) if path.is_dir() else [path]
        if not found:
            raise UserError(
                f"There is no {kinds} file in the directory {path}; name the files, or the directory that holds them "
                "itself."
            )
        files += found
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
    given = as_list(paths)
    names = [child.name for path in given if path.is_dir() for child in sorted(path.iterdir()) if child not in files]
    return [f"Not read in {given[0]}: {shortened(', '.join(names), _NAMES_CHARACTERS)}."] if names else []


def has_ending(path: Path, endings: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(endings)


def _files_of_directory(directory: Path, endings: tuple[str, ...]) -> list[Path]:
    visible = (path for path in directory.iterdir() if not path.name.startswith("."))
    return sorted(path for path in visible if path.is_file() and has_ending(path, endings))
