"""A directory of shards as one data set: a local folder, or whatever fsspec reaches."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pdfx.data.samples import (
    HEAD_BYTES,
    Sample,
    SampleError,
)
from pdfx.data.schema import INDEX_NAME, Record, ShardIndex, explain
from pdfx.data.shard import REBUILD, Shard
from pdfx.data.storage.base import Reading, Storage, StorageError
from pdfx.data.storage.cache import SpanCache
from pdfx.data.storage.local import open_storage
from pdfx.errors import UserError
from pdfx.host.reading import parse_json
from pdfx.model.pictures import MAX_IMAGE_PIXELS

_HEADS_AT_ONCE = 1024


class ShardedDataset:
    """The samples of a directory of shards, by number, in the order of the index.

    A sample is one pair: a query and a target, each ``{"text": str, "images": [PIL.Image in RGB, ...]}``, with any
    number of hard negatives of the same form. Samples are read one by one, in any order. A data set may be pickled, and
    used after a fork.

    Args:
        path: a local directory made by ``pdfx shards build``, or a URL that fsspec knows (``https://``, ``s3://``).
        max_image_pixels: width x height; a sample with a larger picture is a SampleError.
        reading: for URLs: requests at a time, repetitions, time limits in seconds, cache. ``Reading.of(config.data)``
            is what a recipe says.

    Raises:
        UserError: the directory, its index or a shard is missing or cannot be reached, or a file has not the size that
            the index says; the message names the file.

    Example:
        >>> import pdfx
        >>> dataset = pdfx.ShardedDataset("shards")
        >>> len(dataset)
        24
        >>> sample = dataset.read(1)
        >>> sample.key, sample.target["text"], [image.size for image in sample.query["images"]]
        ('sample1', 'the answer to 1', [(48, 48)])
        >>> [key for key, record in dataset.records([0, 23])]
        ['sample0', 'sample23']
    """

    def __init__(self, path: str | Path, max_image_pixels: int = MAX_IMAGE_PIXELS, reading: Reading | None = None):
        reading = reading or Reading()
        self.storage = open_storage(path, reading)
        self.path = self.storage.path
        """For messages."""
        self.index = read_index(self.storage)
        cache = None
        if self.storage.remote and reading.cache_dir is not None:
            most_bytes = int(reading.cache_gigabytes * 1e9)
            cache = SpanCache(reading.cache_dir, most_bytes, self.fingerprint, reading.span_samples)
        self.shards = [Shard(self.storage, entry, max_image_pixels, cache) for entry in self.index.shards]
        for _ in self.storage.map(Shard.check_sizes, self.shards):
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

    def read(self, i: int) -> Sample:
        """Sample ``i`` with decoded images.

        Raises:
            SampleError: its bytes cannot be fetched, or its record or a picture is damaged.
            IndexError: there is no such sample.
        """
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
        """Key, record and members' bytes by suffix of samples, or the error of one that is damaged."""
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
        fetched = self.storage.map(lambda place: _attempt(place[0].fetch, place[1], limit), places)
        for (shard, row), data in zip(places, fetched, strict=True):
            yield data if isinstance(data, SampleError) else _attempt(parse, shard, row, data)

    def _with_query(self, shard: Shard, row: int, sample: Sample) -> Sample:
        if sample.query is None and not self.index.targets_only:
            reason = f"it has no query, though {INDEX_NAME} says that all samples have one"
            raise shard.place(row).error(sample.key, reason)
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
    """The index of a directory of shards. Raises UserError if it is missing, damaged, or of another version."""
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
            version = str(tree.get("version"))[:20]
            raise UserError(f"{path} has version {version} and this pdfx reads version 1; {REBUILD}.")
        return ShardIndex.model_validate(tree)
    except ValueError as error:
        reason = explain(error) if isinstance(error, ValidationError) else f"it is not valid JSON ({error})"
        raise UserError(f"{path} is damaged: {reason}; copy it again, or {REBUILD}.") from None


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
    what = "There is no directory of shards at"
    if Path(storage.path).is_dir():
        what = f"There is no {INDEX_NAME}, so no finished shards, in"
    return f"{what} {storage.path}; make it with 'pdfx shards build'."
