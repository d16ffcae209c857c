"""Reading one shard: a contiguous byte range per sample, or per span if a cache keeps spans."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import numpy as np

from pdfx.data.samples import (
    HEAD_BYTES,
    MOST_SAMPLE_BYTES,
    Place,
    Sample,
    decode_side,
    open_members,
    parse_head,
    parse_record,
    parse_sample,
)
from pdfx.data.schema import INDEX_NAME, Record, ShardEntry
from pdfx.data.storage.base import Storage, StorageError
from pdfx.data.storage.cache import SpanCache
from pdfx.data.storage.local import open_storage
from pdfx.errors import UserError
from pdfx.host.files import read_record
from pdfx.host.reading import array_of
from pdfx.model.pictures import MAX_IMAGE_PIXELS

REBUILD = "build it again with 'pdfx shards build'"


_LONGEST_HEADER = 4096
"""Bytes before the numbers in a file of offsets at most."""


class Shard:
    """One tar of samples, in a folder or a storage, with its byte offsets. Safe to use after a fork and to pickle."""

    def __init__(
        self,
        place: str | Path | Storage,
        entry: ShardEntry,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        cache: SpanCache | None = None,
    ):
        self._storage = open_storage(place)
        self.entry, self.max_image_pixels, self._cache = entry, max_image_pixels, cache
        self._offsets: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_offsets": None}

    @property
    def path(self) -> Path | str:
        """Where the tar lies."""
        return self._storage.where(self.entry.name)

    def check_sizes(self) -> None:
        """Raises UserError if the tar or its offsets are missing or have another size than the index says."""
        size = self._size(self.entry.name)
        if size != self.entry.bytes:
            state = "truncated" if size < self.entry.bytes else "longer than it should be"
            raise UserError(
                f"The shard {self.path} is {state}: it has {size} bytes and {INDEX_NAME} says {self.entry.bytes}; "
                f"copy it again, or {REBUILD}."
            )
        # Before anything is allocated by the number of samples, which is but a claim.
        spare = self._size(self.entry.offsets_name) - 8 * (self.entry.samples + 1)
        if not 0 < spare <= _LONGEST_HEADER:
            state = "are truncated" if spare <= 0 else f"are longer than those of {self.entry.samples} samples"
            raise UserError(
                f"The offsets {self._storage.where(self.entry.offsets_name)} {state}; copy them again, or {REBUILD}."
            )

    @property
    def offsets(self) -> np.ndarray:
        """int64 [samples + 1]: where each sample begins in the tar, in bytes, and where the last one ends. Raises
        UserError."""
        try:
            return self._load_offsets()
        except StorageError as error:
            raise UserError(
                f"The offsets {self._storage.where(self.entry.offsets_name)} cannot be read ({error}); copy them "
                f"again, or {REBUILD}."
            ) from error

    def close(self) -> None:
        self._storage.close(self.entry.name)

    def fetch(self, i: int, limit: int | None = None) -> bytes:
        """The bytes of sample ``i`` of this shard, or its first ``limit`` ones at least. Raises SampleError."""
        try:
            start, stop = self._load_offsets()[i : i + 2].tolist()
            if stop - start > MOST_SAMPLE_BYTES:
                reason = f"it has {stop - start} bytes, more than the {MOST_SAMPLE_BYTES} that are read of one"
                raise self.place(i).error("", reason)
            if self._cache is not None and (span := self._fetch_span(self._cache, i)) is not None:
                return span
            return self._storage.read(self.entry.name, start, min(limit or stop, stop - start))
        except StorageError as error:
            if error.changed:
                self._require_content()
                return self.fetch(i, limit)
            reason = f"its bytes cannot be read from {self.path}: {error}"
            raise self.place(i).error("", reason, "unreachable") from error

    def place(self, i: int) -> Place:
        """Where sample ``i`` stands, for messages."""
        return Place(self.entry.name, i)

    def record(self, i: int, head: bytes | None = None) -> tuple[str, Record]:
        """Key and record of sample ``i``, from its first bytes if they were fetched before. Raises SampleError."""
        return parse_head(self.fetch(i, HEAD_BYTES) if head is None else head, self.place(i)) or self.raw(i)[:2]

    def raw(self, i: int, data: bytes | None = None) -> tuple[str, Record, dict[str, bytes]]:
        """Key, record and members' bytes by suffix of sample ``i``. Raises SampleError if tar or record are damaged."""
        key, members = open_members(self.fetch(i) if data is None else data, self.place(i))
        return key, parse_record(members["json"], key, self.place(i)), members

    def read(self, i: int, data: bytes | None = None) -> Sample:
        """Sample ``i`` with decoded images, from its bytes if they were fetched before. Raises SampleError."""
        return parse_sample(self.fetch(i) if data is None else data, self.place(i), self.max_image_pixels)

    def read_item(self, i: int, side: str, data: bytes | None = None) -> dict:
        """The query or the target of sample ``i`` alone. Raises SampleError like ``read``, and if there is none."""
        data = self.fetch(i) if data is None else data
        # A side without pictures needs no more than the record, so what else is damaged does not matter to it.
        head = parse_head(data, self.place(i))
        textual = head and not getattr(getattr(head[1], side), "images", True)
        key, record, members = (*head, {}) if head and textual else self.raw(i, data)
        if getattr(record, side) is None:
            raise self.place(i).error(key, f"it has no {side}")
        return decode_side(getattr(record, side), members, key, self.place(i), self.max_image_pixels)

    def _load_offsets(self) -> np.ndarray:
        if self._offsets is None:
            path = self._storage.where(self.entry.offsets_name)
            data = self._storage.load(self.entry.offsets_name, 8 * (self.entry.samples + 1) + _LONGEST_HEADER)
            try:
                offsets = array_of(data)
            except ValueError as error:
                raise UserError(
                    f"The offsets {path} cannot be read ({error}); copy them again, or {REBUILD}."
                ) from None
            fits = offsets.dtype == np.int64 and offsets.shape == (self.entry.samples + 1,)
            if not fits or offsets[0] < 0 or offsets[-1] > self.entry.bytes or (np.diff(offsets) <= 0).any():
                raise UserError(
                    f"The offsets {path} do not fit the shard {self.entry.name}; copy both again, or {REBUILD}."
                )
            self._offsets = offsets
        return self._offsets

    def _require_content(self) -> None:
        """Raises UserError if the tar on this machine is not what the index says. A copy or a touch does no harm."""
        size = self._size(self.entry.name)
        if (size, self.entry.sha256) != astuple(read_record(Path(self.path))):
            raise UserError(
                f"The shard {self.path} changed while it was in use; old and new samples would mix, so restore it, "
                "or start a new run."
            )

    def _fetch_span(self, cache: SpanCache, i: int) -> bytes | None:
        """The sample from its span in the cache; None if the span is too large to be read as one."""
        first = i - i % cache.span_samples
        bounds = self._load_offsets()[first : first + cache.span_samples + 1]
        start, stop = int(bounds[0]), int(bounds[-1])
        if stop - start > MOST_SAMPLE_BYTES:
            return None
        name = f"{self.entry.name.removesuffix('.tar')}-{first}-{len(bounds) - 1}"
        return cache.read(name, bounds, i - first, lambda: self._storage.read(self.entry.name, start, stop - start))

    def _size(self, name: str) -> int:
        try:
            return self._storage.size(name)
        except StorageError as error:
            if error.missing:
                raise UserError(
                    f"The shard file {self._storage.where(name)} is missing, though {INDEX_NAME} lists it; restore "
                    f"it, or {REBUILD}."
                ) from None
            raise UserError(f"The shard file {self._storage.where(name)} cannot be examined: {error}.") from error
