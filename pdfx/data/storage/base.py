"""What all storages have in common: how they are read, and how a failure is said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pdfx.config import DataSection
from pdfx.host.reading import SMALL

LONGEST_DELAY = 60.0
"""Seconds between two attempts at most."""
_SETTINGS = DataSection.model_fields


class StorageError(Exception):
    """A file could not be read, is ``missing`` or has ``changed``; the message is the part of a sentence."""

    def __init__(self, reason: str, missing: bool = False, changed: bool = False):
        super().__init__(reason)
        self.missing, self.changed = missing, changed


@dataclass(frozen=True)
class Reading:
    """How to read what is not on this machine; see ``DataSection`` for what the values mean."""

    threads: int = _SETTINGS["read_threads"].default
    retries: int = _SETTINGS["read_retries"].default
    retry_seconds: float = _SETTINGS["read_retry_seconds"].default
    timeout_seconds: float = _SETTINGS["read_timeout_seconds"].default
    cache_dir: str | None = _SETTINGS["cache_dir"].default
    cache_gigabytes: float = _SETTINGS["cache_gigabytes"].default
    span_samples: int = _SETTINGS["span_samples"].default

    @classmethod
    def of(cls, data: DataSection) -> Reading:
        """What a recipe says."""
        return cls(*(getattr(data, name if name in _SETTINGS else f"read_{name}") for name in cls.__annotations__))

    @property
    def longest_seconds(self) -> float:
        """Time that one request may take with all its repetitions."""
        delays = (min(self.retry_seconds * 2**number, LONGEST_DELAY) for number in range(self.retries))
        return (self.retries + 1) * self.timeout_seconds + sum(delays)


class Storage(Protocol):
    """Files of one folder, known by their plain names. Safe to use after a fork and to pickle. All methods raise
    StorageError, and those of remote ones UserError if a file is not the one any more that it was."""

    remote: bool

    @property
    def path(self) -> Path | str:
        """The folder, for messages; no secrets are in it."""

    @property
    def retries(self) -> int:
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
        """``function`` of each item, in order; several at a time if that hides waiting."""

    def close(self, name: str) -> None:
        """Give up what is held open for a file."""
