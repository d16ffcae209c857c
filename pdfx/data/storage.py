"""Where shards lie: a folder of this machine, or whatever fsspec reaches. Files are asked for by name and byte range."""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from pdfx.checksums import stamp
from pdfx.config import DataSection
from pdfx.reading import SMALL, open_plain, read_bounded
from pdfx.urls import is_url

_OPEN_FILES = 64
LONGEST_DELAY = 60.0
"""Seconds between two attempts at most."""


class StorageError(Exception):
    """A file, or a part of it, could not be read; the message is the part of a sentence that says why.

    Attributes:
        missing: there is no such file.
        changed: it is another than it was.
    """

    def __init__(self, reason: str, missing: bool = False, changed: bool = False):
        super().__init__(reason)
        self.missing, self.changed = missing, changed


@dataclass(frozen=True)
class Reading:
    """How to read what is not on this machine; see ``DataSection`` for what the values mean."""

    threads: int = 8
    retries: int = 5
    retry_seconds: float = 1.0
    timeout_seconds: float = 60.0
    cache_dir: str | None = None
    cache_gigabytes: float = 100.0
    span_samples: int = 64

    @classmethod
    def of(cls, data: DataSection) -> Reading:
        """What a recipe says."""
        return cls(
            threads=data.read_threads,
            retries=data.read_retries,
            retry_seconds=data.read_retry_seconds,
            timeout_seconds=data.read_timeout_seconds,
            cache_dir=data.cache_dir,
            cache_gigabytes=data.cache_gigabytes,
            span_samples=data.span_samples,
        )

    @property
    def longest_seconds(self) -> float:
        """Time that one request may take with all its repetitions."""
        delays = (min(self.retry_seconds * 2**number, LONGEST_DELAY) for number in range(self.retries))
        return (self.retries + 1) * self.timeout_seconds + sum(delays)


class Storage(Protocol):
    """Files of one folder, known by their plain names. Safe to use after a fork and to pickle. All methods raise StorageError, and those of remote ones
    UserError if a file is not the one any more that it was."""

    path: Path | str
    """The folder, for messages; no secrets are in it."""
    remote: bool
    retries: int
    """Requests that this process repeated, because they or their answers were lost."""

    def where(self, name: str) -> Path | str:
        """A file's full name, for messages."""

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def load(self, name: str, limit: int = SMALL) -> bytes:
        """A whole file of at most ``limit`` bytes."""

    def read(self, name: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start`` on, exactly."""

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """``function`` of each item, in order; several at a time where that hides waiting."""

    def close(self, name: str) -> None:
        """Give up what is held open for a file."""


def open_storage(place: str | Path | Storage, reading: Reading | None = None) -> Storage:
    """The storage at a local path or an fsspec URL; a storage is given back as it is.

    Raises:
        UserError: the URL's protocol is unknown, or its package is not installed.
    """
    if not isinstance(place, (str, Path)):
        return place
    if not is_url(place):
        return LocalFolder(place)
    # Imported here, since most runs read local folders and fsspec costs each of their processes time.
    from .remote import RemoteFolder

    return RemoteFolder(str(place), reading or Reading())


class LocalFolder:
    """A folder of this machine, of which at most 64 files are held open. Positioned reads share no file position."""

    remote, retries = False, 0

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._files: OrderedDict[str, IO[bytes]] = OrderedDict()
        self._stamps: dict[str, tuple] = {}
        """Of the files whose size was asked for; those that are read must stay as they were then, in all processes."""

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": OrderedDict()}

    def where(self, name: str) -> Path:
        return self.path / name

    def size(self, name: str) -> int:
        try:
            status = self.where(name).stat()
            self._stamps[name] = stamp(status)
        except OSError as error:
            raise _reason(error) from error
        if not stat.S_ISREG(status.st_mode):
            raise StorageError("it is not a plain file")
        return status.st_size

    def load(self, name: str, limit: int = SMALL) -> bytes:
        try:
            return read_bounded(self.where(name), limit)
        except OSError as error:
            raise _reason(error) from error

    def read(self, name: str, start: int, length: int) -> bytes:
        try:
            descriptor = self._open(name).fileno()
            # Asked before, because a buffer of the length is made at once.
            data = os.pread(descriptor, length, start) if start + length <= os.fstat(descriptor).st_size else b""
            # Looked at afterwards, so that nothing that was written before the data was read goes unnoticed.
            now = stamp(os.fstat(descriptor))
        except OSError as error:
            raise _reason(error) from error
        if now != self._stamps.get(name, now):
            self.close(name)
            raise StorageError("it is another file than it was", changed=True)
        if len(data) != length:
            raise StorageError("the file ends before that")
        return data

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(function, items)

    def close(self, name: str) -> None:
        if name in self._files:
            self._files.pop(name).close()

    def _open(self, name: str) -> IO[bytes]:
        if name not in self._files:
            self._files[name] = os.fdopen(open_plain(self.where(name)), "rb", buffering=0)
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(name)
        return self._files[name]


def _reason(error: OSError) -> StorageError:
    return StorageError(error.strerror or str(error), missing=isinstance(error, FileNotFoundError))
