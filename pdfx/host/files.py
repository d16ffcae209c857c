"""Files: written so that a reader never meets half of one, locked, synced, and compared by checksums."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from pdfx.errors import UserError
from pdfx.host.reading import open_plain
from pdfx.host.system_errors import naming

PIECE = 16 * 2**20
"""Bytes that are read and hashed at once."""


def require_folder(path: Path) -> None:
    """Raises UserError, before the work is done, if ``path`` has no folder to be written into, or is '-'."""
    if str(path) == "-":
        raise UserError(
            "The output '-' is not a file name here: this result cannot be printed; give the name of a file (./- for "
            "one of that name)."
        )
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent} to write {path.name} into; make it first.")


@contextmanager
def write_atomically(path: Path) -> Iterator[BinaryIO]:
    """A binary stream whose content takes the place of ``path`` in one step when the block ends, and is dropped when
    the block fails.

    A link stays a link, to the new content; what is not a file (a pipe, a device) is written to and stays what it is.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        with naming(path), path.open("wb") as stream:
            yield stream
        return
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with naming(path), os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes private files; the result gets the rights that open() would have given it.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(value: Any, path: Path) -> None:
    """Plain values as one JSON file."""
    with write_atomically(path) as stream:
        stream.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


@contextmanager
def draft_beside(final: Path) -> Iterator[Path]:
    """A path for a directory that is to become ``final``, on the same file system; whatever the block leaves there is
    removed at its end.

    What a killed process left for the same ``final`` is removed as well, and what a living one is writing is not.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = f".{final.name}.", ".draft"
    for lock in final.parent.glob(f"{glob.escape(prefix)}*{suffix}/lock"):
        # The one that writes there, or another that clears up, may remove it first.
        with suppress(FileNotFoundError), locked(lock) as free:
            if free:
                shutil.rmtree(lock.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, suffix=suffix, dir=final.parent) as scratch:
        unnamed = Path(scratch) / "unnamed-lock"
        unnamed.touch()
        with locked(unnamed):
            # It gets its name only now, so that nobody finds it free while this process lives. A process that is killed
            # before leaves an empty file, no more.
            unnamed.rename(Path(scratch) / "lock")
            yield Path(scratch) / final.name


@contextmanager
def locked(file: Path) -> Iterator[bool]:
    """Hold the lock of a file that exists, which ends with this process; False if another process holds it."""
    # Open for writing: network file systems lock a file that is only read on one machine alone.
    descriptor = os.open(file, os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def file_stamp(path: str | Path) -> str:
    """Size and modification time of a file, which change if it is edited or replaced."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return "absent"
    seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
    return f"{status.st_size} bytes, changed {datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{nanoseconds:09d}"


@dataclass(frozen=True)
class FileRecord:
    """What a file must be: its size in bytes and its checksum in hexadecimal digits."""

    bytes: int
    sha256: str


class ChecksummedStream:
    """A binary stream that hashes what passes through it, and writes all of it to a raw file, which may stop early."""

    def __init__(self, stream):
        self.stream, self.hash, self.bytes = stream, hashlib.sha256(), 0

    def write(self, data) -> None:
        rest = memoryview(data).cast("B")
        self.hash.update(rest)
        self.bytes += rest.nbytes
        while rest:
            rest = rest[self.stream.write(rest) :]

    @property
    def record(self) -> FileRecord:
        return FileRecord(self.bytes, self.hash.hexdigest())


@contextmanager
def checksummed(path: Path) -> Iterator[ChecksummedStream]:
    """A new file; when the block ends it is on the disk and the stream's ``record`` is complete."""
    with naming(path), path.open("wb", buffering=0) as file:
        stream = ChecksummedStream(file)
        yield stream
        os.fsync(file.fileno())


def write_checksummed(path: Path, data: bytes) -> FileRecord:
    """Write a whole small file to the disk."""
    with checksummed(path) as stream:
        stream.write(data)
    return stream.record


def read_record(path: Path) -> FileRecord:
    """The record of a file that exists."""
    digest, size = hashlib.sha256(), 0
    with os.fdopen(open_plain(path), "rb", buffering=0) as file:
        # Most files are far smaller than a piece, and filling it with zeros takes longer than reading them.
        buffer = memoryview(bytearray(min(PIECE, max(os.fstat(file.fileno()).st_size, 1))))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return FileRecord(size, digest.hexdigest())


def stamp(status: os.stat_result) -> tuple[int, int, int]:
    """What distinguishes a file from an earlier one of its name: number, size, and time of the last change."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def sync(path: Path) -> None:
    """Wait until a file or a directory's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_size(text: str) -> int:
    """Bytes of a size such as ``5GB``, ``500MB``, ``2GiB`` or a number. Raises UserError for others, and below 1."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?))?B?", text.strip().upper())
    size = int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2] or " ")) if found else 0
    if size < 1:
        raise UserError(f"Invalid size '{text}'; write it as 5GB, 500MB or 2GiB.")
    return size
