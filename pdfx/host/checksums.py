"""Files with their sizes and SHA-256 checksums, which ``sha256sum`` prints too."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pdfx.host.reading import open_plain
from pdfx.host.system_errors import naming

PIECE = 16 * 2**20
"""Bytes that are read and hashed at once."""


@dataclass(frozen=True)
class FileRecord:
    """What a file must be: its size in bytes and its checksum in hexadecimal digits."""

    bytes: int
    sha256: str


class ChecksummedStream:
    """A binary stream that hashes what passes through it."""

    def __init__(self, stream):
        self.stream, self.hash, self.bytes = stream, hashlib.sha256(), 0

    def write(self, data) -> None:
        self.stream.write(data)
        self.hash.update(data)
        self.bytes += memoryview(data).nbytes

    @property
    def record(self) -> FileRecord:
        return FileRecord(self.bytes, self.hash.hexdigest())


@contextmanager
def checksummed(path: Path) -> Iterator[ChecksummedStream]:
    """A new file; when the block ends it is on the disk and the stream's ``record`` is complete."""
    with naming(path), path.open("wb", buffering=0) as file:
        stream = ChecksummedStream(_Whole(file))
        yield stream
        os.fsync(file.fileno())


class _Whole:
    """Writes all of what it is given; a raw file may stop in between."""

    def __init__(self, file):
        self.file = file

    def write(self, data) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[self.file.write(rest) :]


def write_checksummed(path: Path, data: bytes) -> FileRecord:
    """Write a whole small file to the disk."""
    with checksummed(path) as stream:
        stream.write(data)
    return stream.record


def read_record(path: Path) -> FileRecord:
    """The record of a file that exists."""
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(PIECE))
    with os.fdopen(open_plain(path), "rb", buffering=0) as file:
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
