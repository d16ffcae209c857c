"""Shards behind a URL: ranged reads through fsspec, tried again if trying again can help, several at a time."""

from __future__ import annotations

import os
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import fsspec
from fsspec.asyn import sync

from pdfx.data.storage.base import LONGEST_DELAY, Reading, StorageError
from pdfx.data.storage.remote_errors import ReplacedError, Sightings, is_missing, is_transient, reason_of
from pdfx.errors import UserError
from pdfx.host.reading import SMALL
from pdfx.host.urls import HTTP, protocol_of, scrubbed, split_query, without_secrets

_S3 = ("s3", "s3a")


@dataclass(eq=False)
class _Connection:
    """What belongs to one process: event loops, sessions and threads do not survive a fork, and cannot be pickled."""

    process: int
    filesystem: Any
    root: str
    pool: ThreadPoolExecutor
    repeated: list[None] = field(default_factory=list)
    """One per repeated request: threads append to a list safely, and would miscount by adding to a number."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when the program ends, so that no thread keeps it waiting with further attempts."""


_FILESYSTEMS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_INHERITED: list[Any] = []
# A child that let go of its parent's file systems would close their sessions, which takes the sockets out of the event
# loop that it shares with the parent.
os.register_at_fork(after_in_child=lambda: _INHERITED.extend(_FILESYSTEMS.values()))


class RemoteFolder:
    """A folder that fsspec reaches. Each process connects by itself, when it first reads.

    Raises:
        UserError: the URL's protocol is unknown, or its package is not installed.
    """

    remote = True

    def __init__(self, url: str, reading: Reading):
        self.url, self.reading = url, reading
        base, self._query = split_query(url)
        self._base = base.rstrip("/")
        self.path = without_secrets(self._base)
        self._sightings = Sightings()
        self._connection: _Connection | None = None
        self._connect()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_connection": None}

    @property
    def retries(self) -> int:
        return len(self._connect().repeated)

    def where(self, name: str) -> str:
        return f"{self.path}/{name}"

    def size(self, name: str) -> int:
        size = self._persist(lambda: self._ask("info", name))["size"]
        if size is None:
            raise StorageError("its server does not tell how large it is")
        return int(size)

    def load(self, name: str, limit: int = SMALL) -> bytes:
        def attempt() -> bytes:
            # Other file systems know no limit, but ranges; one byte more shows that a file is longer.
            ours = hasattr(self._connect().filesystem, "sightings")
            bound = {"limit": limit} if ours else {"start": 0, "end": limit + 1}
            data = self._ask("cat_file", name, **bound)
            if len(data) > limit:
                raise ValueError(f"it has more than the {limit} bytes that are read of such a file")
            return data

        return self._persist(attempt)

    def read(self, name: str, start: int, length: int) -> bytes:
        def attempt() -> bytes:
            data = self._ask("cat_file", name, start=start, end=start + length)
            if len(data) < length:
                raise EOFError(f"only {len(data)} of {length} bytes came")
            if len(data) > length:
                raise ValueError(f"{len(data)} bytes came where {length} were asked for")
            return data

        return self._persist(attempt)

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        connection = self._connect()
        pending: deque[Future] = deque()
        try:
            for item in items:
                pending.append(connection.pool.submit(function, item))
                # So many ahead keep all threads busy; more would only fill memory.
                if len(pending) > 2 * self.reading.threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except (KeyboardInterrupt, SystemExit):
            connection.ended.set()
            raise
        finally:
            for future in pending:
                future.cancel()

    def close(self, name: str) -> None:
        """Nothing is held open for single files."""

    def _persist(self, attempt: Callable[[], Any]) -> Any:
        """What ``attempt`` gives, after as many repetitions as are allowed."""
        for number in range(self.reading.retries + 1):
            try:
                return attempt()
            except UserError:
                raise
            except Exception as error:  # every file system of fsspec has exceptions of its own
                reason = scrubbed(reason_of(error, self.reading.timeout_seconds)).replace(self._query or "\0", "")
                if not is_transient(error):
                    raise StorageError(reason, is_missing(error)) from error
                if number == self.reading.retries or self._connect().ended.wait(self._delay(number)):
                    raise StorageError(f"{reason}, tried {number + 1} times" if number else reason) from error
                self._connect().repeated.append(None)
        raise AssertionError("the last repetition returns or raises")

    def _delay(self, repetition: int) -> float:
        """Seconds before a repetition: twice as many each time, of which a random half is dropped, so that many
        processes do not come back together."""
        return min(self.reading.retry_seconds * 2**repetition, LONGEST_DELAY) * random.SystemRandom().uniform(0.5, 1)

    def _ask(self, method: str, name: str, **options: Any) -> Any:
        connection = self._connect()
        filesystem, path = connection.filesystem, f"{connection.root}/{name}{self._query}"
        if getattr(filesystem, "local_file", False) and os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("it is not a plain file")
        try:
            if not getattr(filesystem, "async_impl", False):
                return getattr(filesystem, method)(path, **options)
            call, seconds = getattr(filesystem, f"_{method}"), self.reading.timeout_seconds
            return sync(filesystem.loop, call, path, timeout=seconds, **options)
        except ReplacedError as error:
            cure = "leave shards as they are while they are read, and give the same command again to read the new ones"
            raise UserError(f"{self.where(name)} was replaced while it was in use ({error}); {cure}.") from None

    def _connect(self) -> _Connection:
        if self._connection is None or self._connection.process != os.getpid():
            filesystem, root = self._open()
            self._connection = _Connection(
                os.getpid(), filesystem, root.rstrip("/"), ThreadPoolExecutor(self.reading.threads, "pdfx-read")
            )
            _FILESYSTEMS[id(filesystem)] = filesystem
        return self._connection

    def _open(self) -> tuple[Any, str]:
        protocol = protocol_of(self.url)
        try:
            if protocol in HTTP:
                from pdfx.data.storage.http_ranges import RangedHTTP

                filesystem, root = RangedHTTP(skip_instance_cache=True), self._base
                filesystem.sightings = self._sightings
            elif protocol in _S3 and fsspec.get_filesystem_class(protocol):
                from pdfx.data.storage.s3_ranges import RangedS3

                filesystem = RangedS3(skip_instance_cache=True, **RangedS3._get_kwargs_from_urls(self.url))
                root = RangedS3._strip_protocol(self.url)
                filesystem.sightings = self._sightings
            else:
                filesystem, root = fsspec.url_to_fs(self.url, skip_instance_cache=True)
        except ImportError as error:
            raise UserError(
                f"{self.path} cannot be read without a package that is not installed ({' '.join(str(error).split())}); "
                "'pip install pdfx[remote]' brings what http://, https:// and s3:// need."
            ) from None
        except Exception as error:  # a wrong protocol, or what the file system makes of its own configuration
            reason = scrubbed(reason_of(error, self.reading.timeout_seconds))
            raise UserError(f"{self.path} cannot be opened: {reason}.") from error
        if protocol in _S3:
            # Repetitions of the libraries would multiply with ours, and so would the time until an error is reported.
            filesystem.retries = 1
            ours = {"retries": {"max_attempts": 0}, "max_pool_connections": self.reading.threads}
            filesystem.config_kwargs = {**filesystem.config_kwargs, **ours}
        return filesystem, root
