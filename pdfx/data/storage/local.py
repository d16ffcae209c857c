"""Shards in a folder of this machine."""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from pdfx.data.storage.base import Reading, Storage, StorageError
from pdfx.host.files import stamp
from pdfx.host.reading import SMALL, open_plain, read_bounded
from pdfx.host.urls import is_url

_OPEN_FILES = 64


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
    from pdfx.data.storage.remote import RemoteFolder

    return RemoteFolder(str(place), reading or Reading())
