"""A bounded folder of spans that were fetched before, shared by all processes of a machine.

An entry is one file: a checksum per sample (CRC-32, 4 bytes each), then the span's bytes. What is read of it is checked
each time, so that a damaged or truncated entry is fetched again. Three rules make it safe without a server and survive
a kill at any moment:

- An entry is written under another name, which ends in ``.part``, and renamed. Who holds the lock of that file fetches;
  others who want the entry wait.
- Who adds an entry holds the lock of the file ``bytes``, which says how much the entries take. It is raised before
  anything is written.
- Only if an entry would not fit the bound is the folder listed, and then so many entries are removed, the least
  recently read first, that a tenth of the bound is free again.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from pdfx.errors import UserError
from pdfx.host.reading import open_plain

_COUNT_NAME = "bytes"
_FOLDER = re.compile(r"[0-9a-f]{32}")
_ENTRY = ".span"
_PART = ".part"
CACHE_USE = 0.9
"""The share of the bound that is in use after entries were removed."""
_FRESH_SECONDS = 30
"""A read of an entry that was marked as read so lately does not mark it again."""


class SpanCache:
    """Spans of one data set, by name. Holds nothing open between calls, so it may be used after a fork and be pickled.

    Args:
        folder: made if it does not exist; on a local disk. Data sets may share it.
        most_bytes: what all entries of all data sets take at most.
        fingerprint: of the data set.
        span_samples: samples of a span.

    Raises:
        UserError: the folder cannot be written to or knows no locks.
    """

    def __init__(self, folder: str | Path, most_bytes: int, fingerprint: str, span_samples: int):
        self.folder, self.most_bytes, self.span_samples = Path(folder), most_bytes, span_samples
        self._own = self.folder / fingerprint[:32]
        self._told = False
        try:
            self._own.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / _COUNT_NAME):
                pass
        except OSError as error:
            raise UserError(
                f"The cache folder {folder} cannot be used ({error.strerror}); set data.cache_dir to a folder on a "
                "local disk."
            ) from None

    def read(self, name: str, bounds: np.ndarray, row: int, fetch: Callable[[], bytes]) -> bytes:
        """The bytes of one sample of a span.

        Args:
            name: of the span, as part of a file's name.
            bounds: int64 [samples + 1], where the span's samples begin and the last one ends.
            fetch: gives the span's bytes; called only if no sound entry exists, and by one process at a time.
        """
        path = self._own / (name + _ENTRY)
        found = _read_entry(path, bounds, row)
        if found is not None:
            return found
        span = None
        try:
            with _sole_writer(path.with_name(path.name + _PART)) as part:
                found = _read_entry(path, bounds, row)
                if found is not None:
                    return found
                span = fetch()
                self._add(part, path, bounds, span)
        except OSError as error:  # a full or failing disk: the run can do without a cache
            self._tell(error)
            span = fetch() if span is None else span
        return span[int(bounds[row] - bounds[0]) : int(bounds[row + 1] - bounds[0])]

    def _add(self, part: int, path: Path, bounds: np.ndarray, span: bytes) -> None:
        """Make ``span`` the entry ``path``, through the descriptor of its ``.part`` file."""
        starts = (bounds - bounds[0]).tolist()
        view = memoryview(span)
        checks = [zlib.crc32(view[start:stop]) for start, stop in zip(starts[:-1], starts[1:], strict=True)]
        size = 4 * len(checks) + len(span)
        if size > CACHE_USE * self.most_bytes:
            return
        with _locked(self.folder / _COUNT_NAME) as count:
            known = os.pread(count, 8, 0)
            used = int.from_bytes(known, "little")
            if len(known) < 8 or used + size > self.most_bytes:
                used = self._evict(size)
            os.pwrite(count, (used + size).to_bytes(8, "little"), 0)
            # Not synced: what a crash of the machine leaves behind does not fit its checksums.
            os.ftruncate(part, 0)
            with open(part, "wb", closefd=False) as stream:
                stream.write(np.array(checks, dtype="<u4").tobytes())
                stream.write(view)
            path.with_name(path.name + _PART).replace(path)

    def _evict(self, size: int) -> int:
        """Bytes that remain after making room for ``size`` more."""
        entries = sorted(self._entries())
        remaining = sum(taken for _, taken, _ in entries)
        for _, taken, path in entries:
            if remaining + size <= CACHE_USE * self.most_bytes:
                break
            path.unlink(missing_ok=True)
            remaining -= taken
        return remaining

    def _entries(self) -> Iterator[tuple[int, int, Path]]:
        """When each entry was last read, its size and its path. Also removes files of writers that were killed."""
        for folder in self.folder.iterdir():
            # The folder may hold other people's files too, which are not ours to remove.
            for entry in os.scandir(folder) if _FOLDER.fullmatch(folder.name) else ():
                if entry.name.endswith(_ENTRY + _PART):
                    _remove_abandoned(Path(entry))
                elif entry.name.endswith(_ENTRY):
                    with suppress(FileNotFoundError):
                        status = entry.stat()
                        yield status.st_mtime_ns, status.st_size, Path(entry)

    def _tell(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            print(
                f"The cache folder {self.folder} cannot be written to ({error.strerror}); samples are fetched "
                "without it.",
                file=sys.stderr,
                flush=True,
            )


def _read_entry(path: Path, bounds: np.ndarray, row: int) -> bytes | None:
    """A sample of an entry; None if there is no entry, or no sound one, which is then removed."""
    try:
        descriptor = open_plain(path)
    except OSError:
        return None
    try:
        samples, status = len(bounds) - 1, os.fstat(descriptor)
        if status.st_size == 4 * samples + int(bounds[-1] - bounds[0]):
            check = os.pread(descriptor, 4, 4 * row)
            data = os.pread(descriptor, int(bounds[row + 1] - bounds[row]), 4 * samples + int(bounds[row] - bounds[0]))
            if zlib.crc32(data) == int.from_bytes(check, "little"):
                if time.time() - status.st_mtime > _FRESH_SECONDS:
                    with suppress(PermissionError):
                        os.utime(descriptor)
                return data
    except OSError:
        pass  # an unreadable entry is as bad as a damaged one
    finally:
        os.close(descriptor)
    with suppress(OSError):
        path.unlink()
    return None


@contextmanager
def _sole_writer(path: Path) -> Iterator[int]:
    """Waits until this process alone may write ``path``, by its descriptor; and removes it if it is still there."""
    descriptor = _lock(path)
    while not _is_still(path, descriptor):  # who held the lock renamed or removed it
        os.close(descriptor)
        descriptor = _lock(path)
    try:
        yield descriptor
    finally:
        if _is_still(path, descriptor):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    with suppress(OSError):  # it is in use, or gone
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _lock(path: Path) -> int:
    """A descriptor of ``path``, made if there is none, that holds its lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    descriptor = _lock(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
