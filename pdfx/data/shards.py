"""Reading shards: one contiguous byte range per sample, or per span if a cache keeps spans, from a local folder or
from wherever fsspec reaches."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from pdfx.data.samples import (
    HEAD_BYTES,
    MOST_SAMPLE_BYTES,
    Place,
    Sample,
    SampleError,
    decode_side,
    open_members,
    parse_head,
    parse_record,
    parse_sample,
)
from pdfx.data.schema import INDEX_NAME, Record, ShardEntry, ShardIndex, explain
from pdfx.data.storage.base import Reading, Storage, StorageError
from pdfx.data.storage.cache import SpanCache
from pdfx.data.storage.local import open_storage
from pdfx.errors import UserError
from pdfx.host.files import read_record
from pdfx.host.reading import array_of, parse_json
from pdfx.model.pictures import MAX_IMAGE_PIXELS

_REBUILD = "build it again with 'pdfx shards build'"
_HEADS_AT_ONCE = 1024
_LONGEST_HEADER = 4096
"""Bytes before the numbers in a file of offsets at most."""


class Shard:
    """One tar of samples with its byte offsets. Safe to use after a fork and to pickle.

    Args:
        place: the folder of shards, or its storage.
        cache: keeps spans of what is read.
    """

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
                f"copy it again, or {_REBUILD}."
            )
        # Before anything is allocated by the number of samples, which is but a claim.
        spare = self._size(self.entry.offsets_name) - 8 * (self.entry.samples + 1)
        if not 0 < spare <= _LONGEST_HEADER:
            state = "are truncated" if spare <= 0 else f"are longer than those of {self.entry.samples} samples"
            raise UserError(
                f"The offsets {self._storage.where(self.entry.offsets_name)} {state}; copy them again, or {_REBUILD}."
            )

    @property
    def offsets(self) -> np.ndarray:
        """int64 [samples + 1]: where each sample begins in the tar, in bytes, and where the last one ends.

        Raises:
            UserError: the file of offsets is damaged, does not fit the shard, or cannot be reached.
        """
        try:
            return self._load_offsets()
        except StorageError as error:
            raise UserError(
                f"The offsets {self._storage.where(self.entry.offsets_name)} cannot be read ({error}); copy them "
                f"again, or {_REBUILD}."
            ) from error

    def close(self) -> None:
        self._storage.close(self.entry.name)

    def fetch(self, i: int, limit: int | None = None) -> bytes:
        """The bytes of sample ``i`` of this shard, or its first ``limit`` ones at least.

        Raises:
            SampleError: they cannot be read.
        """
        try:
            start, stop = self._load_offsets()[i : i + 2].tolist()
            if stop - start > MOST_SAMPLE_BYTES:
                raise self.place(i).error(
                    "", f"it has {stop - start} bytes, more than the {MOST_SAMPLE_BYTES} that are read of one"
                )
            if self._cache is not None and (span := self._fetch_span(self._cache, i)) is not None:
                return span
            return self._storage.read(
                self.entry.name, start, stop - start if limit is None else min(limit, stop - start)
            )
        except StorageError as error:
            if error.changed:
                self._require_content()
                return self.fetch(i, limit)
            raise self.place(i).error(
                "", f"its bytes cannot be read from {self.path}: {error}", "unreachable"
            ) from error

    def place(self, i: int) -> Place:
        """Where sample ``i`` stands, for messages."""
        return Place(self.entry.name, i)

    def record(self, i: int, head: bytes | None = None) -> tuple[str, Record]:
        """Key and record of sample ``i`` of this shard; reads a few kilobytes, no images.

        Args:
            head: the sample's first bytes, if they were fetched before.

        Raises:
            SampleError: the bytes are damaged.
        """
        return parse_head(self.fetch(i, HEAD_BYTES) if head is None else head, self.place(i)) or self.raw(i)[:2]

    def raw(self, i: int, data: bytes | None = None) -> tuple[str, Record, dict[str, bytes]]:
        """Key, record and members' bytes by suffix of sample ``i`` of this shard. Raises SampleError if the tar or
        the record is damaged."""
        key, members = open_members(self.fetch(i) if data is None else data, self.place(i))
        return key, parse_record(members["json"], key, self.place(i)), members

    def read(self, i: int, data: bytes | None = None) -> Sample:
        """Sample ``i`` of this shard with decoded images.

        Args:
            data: its bytes, if they were fetched before.

        Raises:
            SampleError: the bytes, the record or an image are damaged.
        """
        return parse_sample(self.fetch(i) if data is None else data, self.place(i), self.max_image_pixels)

    def read_item(self, i: int, side: str, data: bytes | None = None) -> dict:
        """The query or the target of sample ``i`` alone. Raises SampleError like ``read``, and if the sample has no
        such side."""
        data = self.fetch(i) if data is None else data
        # A side without pictures needs no more than the record, so what else is damaged does not matter to it.
        head = parse_head(data, self.place(i))
        key, record, members = (
            (*head, {}) if head and not getattr(getattr(head[1], side), "images", True) else self.raw(i, data)
        )
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
                    f"The offsets {path} cannot be read ({error}); copy them again, or {_REBUILD}."
                ) from None
            fits = offsets.dtype == np.int64 and offsets.shape == (self.entry.samples + 1,)
            if not fits or offsets[0] < 0 or offsets[-1] > self.entry.bytes or (np.diff(offsets) <= 0).any():
                raise UserError(
                    f"The offsets {path} do not fit the shard {self.entry.name}; copy both again, or {_REBUILD}."
                )
            self._offsets = offsets
        return self._offsets

    def _require_content(self) -> None:
        """Raises UserError if the tar on this machine is not what the index says; a mere copy or a touch leaves it what
        it was."""
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
                    f"it, or {_REBUILD}."
                ) from None
            raise UserError(f"The shard file {self._storage.where(name)} cannot be examined: {error}.") from error


class ShardedDataset:
    """The samples of a directory of shards, by number, in the order of the index.

    Args:
        path: a local directory, or a URL that fsspec knows.
        reading: how to read from a URL.

    Raises:
        UserError: the directory, its index or a shard is missing or cannot be reached, or a file has not the size that
            the index says; the message names the file.
    """

    def __init__(self, path: str | Path, max_image_pixels: int = MAX_IMAGE_PIXELS, reading: Reading | None = None):
        reading = reading or Reading()
        self._storage = open_storage(path, reading)
        self.path = self._storage.path
        """For messages."""
        self.index = read_index(self._storage)
        cache = None
        if self._storage.remote and reading.cache_dir is not None:
            cache = SpanCache(
                reading.cache_dir, int(reading.cache_gigabytes * 1e9), self.fingerprint, reading.span_samples
            )
        self.shards = [Shard(self._storage, entry, max_image_pixels, cache) for entry in self.index.shards]
        for _ in self._storage.map(Shard.check_sizes, self.shards):
            pass
        self.shard_sizes = [entry.samples for entry in self.index.shards]
        self._starts = [0, *accumulate(self.shard_sizes)]

    def __len__(self) -> int:
        return self.index.samples

    @property
    def fingerprint(self) -> str:
        """Changes with any byte of any shard."""
        return self.index.fingerprint

    def bytes_of(self, samples: int) -> int:
        """What so many samples take, of average size; no more than all do."""
        return sum(entry.bytes for entry in self.index.shards) * min(samples, len(self)) // max(len(self), 1)

    @property
    def storage(self) -> Storage:
        """Where its files lie."""
        return self._storage

    @property
    def remote(self) -> bool:
        return self._storage.remote

    @property
    def retries(self) -> int:
        """How often this process repeated a request, because it or its answer was lost."""
        return self._storage.retries

    def read(self, i: int) -> Sample:
        """Sample ``i`` with decoded images. Raises SampleError if it is damaged, IndexError if there is none."""
        shard, row = self._locate(i)
        return self._with_query(shard, row, shard.read(row))

    def read_many(self, numbers: Iterable[int]) -> list[Sample | SampleError]:
        """The samples with these numbers, in their order, with an error in the place of each that cannot be used.

        From a URL, several are fetched at a time. Raises IndexError if there is no such sample.
        """
        return list(self._each(numbers, lambda shard, row, data: self._with_query(shard, row, shard.read(row, data))))

    def read_item(self, i: int, side: str) -> dict:
        """The ``query`` or ``target`` of sample ``i`` alone; only its own images are decoded. Raises like ``read``."""
        shard, row = self._locate(i)
        return shard.read_item(row, side)

    def read_items(self, numbers: Iterable[int], side: str) -> list[dict | SampleError]:
        """As ``read_many``, of one side alone."""
        return list(self._each(numbers, lambda shard, row, data: shard.read_item(row, side, data)))

    def records(self, numbers: Iterable[int] | None = None) -> Iterator[tuple[str, Record]]:
        """(key, record) of the samples, without reading images. Raises SampleError if one is damaged."""
        for found in self.heads(numbers):
            if isinstance(found, SampleError):
                raise found
            yield found

    def heads(self, numbers: Iterable[int] | None = None) -> Iterator[tuple[str, Record] | SampleError]:
        """As ``records``, with an error in the place of each sample that is damaged."""
        rest = iter(range(len(self)) if numbers is None else numbers)
        while some := list(islice(rest, _HEADS_AT_ONCE)):
            yield from self._each(some, Shard.record, HEAD_BYTES)

    def samples(self) -> Iterator[tuple[str, Record, dict[str, bytes]]]:
        """Key, record and members' bytes by suffix of all samples in order. Raises SampleError if one is damaged."""
        for shard in self.shards:
            yield from map(shard.raw, range(shard.entry.samples))
            shard.close()

    def raw_many(self, numbers: Iterable[int]) -> Iterator[tuple[str, Record, dict[str, bytes]] | SampleError]:
        """Key, record and members' bytes by suffix of the samples, with an error in the place of each that is
        damaged."""
        return self._each(numbers, Shard.raw)

    def refused(self, i: int, reason: str) -> SampleError:
        """That the processor cannot use sample ``i``."""
        shard, row = self._locate(i)
        head = _attempt(shard.record, row)
        return shard.place(row).error("" if isinstance(head, SampleError) else head[0], reason, "processor")

    def _each(
        self, numbers: Iterable[int], parse: Callable[[Shard, int, bytes], Any], limit: int | None = None
    ) -> Iterator[Any]:
        """``parse`` of each sample's shard, number therein and bytes, or the SampleError that comes of it."""
        places = [self._locate(i) for i in numbers]
        fetched = self._storage.map(lambda place: _attempt(place[0].fetch, place[1], limit), places)
        for (shard, row), data in zip(places, fetched, strict=True):
            yield data if isinstance(data, SampleError) else _attempt(parse, shard, row, data)

    def _with_query(self, shard: Shard, row: int, sample: Sample) -> Sample:
        if sample.query is None and not self.index.targets_only:
            raise shard.place(row).error(
                sample.key, f"it has no query, though {INDEX_NAME} says that all samples have one"
            )
        return sample

    def _locate(self, i: int) -> tuple[Shard, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        number = bisect.bisect_right(self._starts, i) - 1
        return self.shards[number], i - self._starts[number]


def _attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except SampleError as error:
        return error


def read_index(place: str | Path | Storage) -> ShardIndex:
    """The index of a directory of shards.

    Raises:
        UserError: it is missing, damaged, or of another version.
    """
    storage = open_storage(place)
    path = storage.where(INDEX_NAME)
    try:
        data = storage.load(INDEX_NAME)
    except StorageError as error:
        if error.missing or not storage.remote and Path(storage.path).is_file():
            raise UserError(no_index(storage)) from None
        raise UserError(f"{path} cannot be read: {error}.") from None
    try:
        tree = parse_json(data)
        if isinstance(tree, dict) and tree.get("version") != 1:
            raise UserError(
                f"{path} has version {str(tree.get('version'))[:20]} and this pdfx reads version 1; {_REBUILD}."
            )
        return ShardIndex.model_validate(tree)
    except ValueError as error:
        reason = explain(error) if isinstance(error, ValidationError) else f"it is not valid JSON ({error})"
        raise UserError(f"{path} is damaged: {reason}; copy it again, or {_REBUILD}.") from None


def no_index(storage: Storage) -> str:
    """The sentence for a place that holds no finished shards."""
    if storage.remote:
        return (
            f"There is no {INDEX_NAME} at {storage.path}, so no finished shards; make them with 'pdfx shards "
            "build' and copy the whole folder there."
        )
    if Path(storage.path).is_file():
        make = f"make them of records with 'pdfx shards build {storage.path} --out DIRECTORY', and name that directory"
        return f"{storage.path} is a file, and shards are a directory; {make}."
    what = (
        f"There is no {INDEX_NAME}, so no finished shards, in"
        if Path(storage.path).is_dir()
        else "There is no directory of shards at"
    )
    return f"{what} {storage.path}; make it with 'pdfx shards build'."
