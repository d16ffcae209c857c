"""Joining directories of shards."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from data_tools.build.shard_writer import ShardSeries, Written, finish_directory, new_directories, read_stats
from pdfx.data.numbers import key_number, repeated_keys
from pdfx.data.schema import INDEX_NAME, Record, ShardEntry
from pdfx.data.shards import SampleError, Shard, ShardedDataset
from pdfx.data.storage.base import Storage, StorageError
from pdfx.data.storage.local import open_storage
from pdfx.errors import UserError
from pdfx.host.console import ShowProgress
from pdfx.host.files import checksummed, sync

LONGEST_KEY = 64
_BLOCK = 1 << 23
_NAMED = 3


def merge_shards(
    paths: Sequence[str | Path],
    out: Path,
    link: bool = False,
    prefix_keys: bool = False,
    key_progress: ShowProgress | None = None,
    progress: ShowProgress | None = None,
) -> Written:
    """Make one directory of shards of several: all their shards under new names, in the order given.

    Args:
        paths: local directories, or URLs that fsspec knows.
        link: make hard links instead of copies. This takes no time and no disk space, but both names are then one
            file, so a change through one name shows under the other.
        prefix_keys: write every sample again with its directory's number and "-" before its key ("0-cat", "1-cat"), so
            that keys of several directories may be equal.
        key_progress: called with (keys read, keys in all), before anything is written; not with ``prefix_keys``.
        progress: called with (samples written, samples in all).

    Raises:
        UserError: a directory holds no complete shards, a key is there twice or would grow too long, a shard is
            damaged, ``out`` is not empty, or files cannot be linked there. Nothing is left behind then.
    """
    if link and prefix_keys:
        raise UserError(
            "Shards are written again to prefix their keys, so they cannot be linked; choose one of --link and "
            "--prefix-keys."
        )
    storages = [open_storage(path) for path in paths]
    if link and any(storage.remote for storage in storages):
        raise UserError("What lies behind a URL cannot be linked; leave --link (link=True) out to copy.")
    datasets = [ShardedDataset(path) for path in paths]
    if not prefix_keys:
        _require_different_keys(datasets, key_progress)
    with new_directories([out]):
        if prefix_keys:
            return _write_again(datasets, out, progress)
        entries: list[ShardEntry] = []
        for storage, dataset in zip(storages, datasets, strict=True):
            for shard in dataset.shards:
                entries.append(_take_over(storage, shard, out, len(entries), link))
                if progress:
                    progress(sum(entry.samples for entry in entries), sum(map(len, datasets)))
        sync(out)
        return finish_directory(out, entries, sum(dataset.index.targets_only for dataset in datasets))


def _require_different_keys(datasets: list[ShardedDataset], progress: ShowProgress | None) -> None:
    numbers = np.empty(sum(map(len, datasets)), dtype=np.int64)
    starts = list(accumulate(map(len, datasets), initial=0))
    for dataset, start in zip(datasets, starts, strict=False):
        for i, (key, _) in enumerate(_sound_records(dataset, range(len(dataset))), start):
            numbers[i] = key_number(key)
            if progress:
                progress(i + 1, len(numbers))

    def owner(sample: int) -> int:
        return bisect_right(starts, sample) - 1

    def key_of(sample: int) -> str:
        return next(_sound_records(datasets[owner(sample)], [sample - starts[owner(sample)]]))[0]

    repeated = [
        f"'{key}' in {datasets[owner(first)].path} and {datasets[owner(other)].path}"
        for key, first, other in repeated_keys(numbers, key_of)
    ]
    if repeated:
        more = f" and {len(repeated) - _NAMED} more" if len(repeated) > _NAMED else ""
        raise UserError(
            f"Keys must be unique and are not: {', '.join(repeated[:_NAMED])}{more}. Give --prefix-keys "
            "(prefix_keys=True) to tell them apart."
        )


def _sound_records(dataset: ShardedDataset, numbers) -> Iterator[tuple[str, Record]]:
    try:
        yield from dataset.records(numbers)
    except SampleError as error:
        raise _damaged(dataset, error) from None


def _damaged(dataset: ShardedDataset, error: SampleError) -> UserError:
    return UserError(f"{dataset.path} cannot be merged. {error} Find all such samples with 'pdfx shards check --full'.")


def _take_over(storage: Storage, shard: Shard, out: Path, number: int, link: bool) -> ShardEntry:
    """Copy or link a shard's files into ``out``; a copy is compared with its checksum."""
    entry = shard.entry.model_copy(update={"name": f"{number:05d}.tar"})
    read_stats(storage, shard.entry)
    _ = shard.offsets
    for old, new in (
        (shard.entry.offsets_name, entry.offsets_name),
        (shard.entry.stats_name, entry.stats_name),
        (shard.entry.name, entry.name),
    ):
        if link:
            _link(Path(storage.where(old)), out / new)
        elif _copy(storage, old, out / new) != entry.sha256 and old == shard.entry.name:
            raise UserError(
                f"The shard {shard.path} has another SHA-256 than its {INDEX_NAME} says; copy it again, or build "
                "it again."
            )
    storage.close(shard.entry.name)
    return entry


def _link(source: Path, goal: Path) -> None:
    try:
        os.link(source.resolve(), goal)
    except OSError as error:
        raise UserError(
            f"{source} cannot be linked as {goal} ({error.strerror}); leave --link (link=True) out to copy."
        ) from None


def _copy(storage: Storage, name: str, goal: Path) -> str:
    """The copy's SHA-256."""
    try:
        size = storage.size(name)
        with checksummed(goal) as stream:
            for start in range(0, size, _BLOCK):
                stream.write(storage.read(name, start, min(_BLOCK, size - start)))
    except StorageError as error:
        raise UserError(f"{storage.where(name)} cannot be read to its end: {error}.") from None
    return stream.record.sha256


def _write_again(datasets: list[ShardedDataset], out: Path, progress: ShowProgress | None) -> Written:
    done, total = 0, sum(map(len, datasets))
    with ShardSeries(out) as series:
        for number, dataset in enumerate(datasets):
            for shard in dataset.shards:
                for row in range(shard.entry.samples):
                    series.add(*_prefixed(dataset, shard, row, number))
                    done += 1
                    if progress:
                        progress(done, total)
                shard.close()
                series.end_shard()
        return series.finish()


def _prefixed(dataset: ShardedDataset, shard: Shard, row: int, number: int) -> tuple[str, Record, dict[str, bytes]]:
    try:
        key, record, members = shard.raw(row)
    except SampleError as error:
        raise _damaged(dataset, error) from None
    key = f"{number}-{key}"
    if len(key) > LONGEST_KEY:
        raise UserError(
            f"The key '{key}' would have more than {LONGEST_KEY} characters with its prefix; build {dataset.path} "
            "from shorter ones."
        )
    record = record.model_copy(update={"key": key})
    return key, record, {**members, "json": record.model_dump_json(exclude_none=True).encode()}
