"""Examining a directory of shards, and telling every problem instead of the first."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np

from pdfx.data.images import MAX_IMAGE_PIXELS
from pdfx.data.schema import INDEX_NAME, ShardIndex
from pdfx.data.shards import SampleError, Shard, read_index
from pdfx.errors import UserError

from .build import Progress
from .check_content import Examiner
from .keys import UNKNOWN, repeated_keys
from .parts import parts_of, share_out


def check_shards(
    path: str | Path, full: bool = False, progress: Progress | None = None, max_image_pixels: int = MAX_IMAGE_PIXELS, workers: int = 1
) -> list[str]:
    """All problems of a directory of shards, one sentence each; an empty list where it is sound.

    Args:
        full: also compare checksums, compare the offsets with the tars, look for repeated keys, and decode every sample. Otherwise only the
            index, the sizes of files, the form of the offsets and what else lies in the directory are looked at. A full check of a shard whose files
            are missing, or have another size than the index says, stays a quick one.
        progress: called with (samples done, samples in all).
        workers: processes that a full check uses. It holds eight bytes per sample, and one sample at a time in each process.

    Raises:
        UserError: there is no such directory.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise UserError(f"There is no directory of shards at {directory}; make it with 'pdfx shards build'.")
    try:
        index = read_index(directory)
    except UserError as error:
        return [str(error)]
    problems = list(_unlisted(directory, index))
    shards = [Shard(directory, entry, max_image_pixels) for entry in index.shards]
    sound = []
    for number, shard in enumerate(shards):
        try:
            shard.check_sizes()
            _ = shard.offsets
            sound.append(number)
        except UserError as error:
            problems.append(str(error))
    if full:
        problems += _check_contents(index, shards, sound, progress, workers)
    elif progress:
        progress(index.samples, index.samples)
    return problems


def _unlisted(directory: Path, index: ShardIndex) -> Iterator[str]:
    listed = {INDEX_NAME, *(name for entry in index.shards for name in (entry.name, entry.offsets_name, entry.stats_name))}
    for path in sorted(directory.iterdir()):
        if path.name not in listed and path.name.endswith((".tar", ".idx.npy", "_stats.json")):
            yield f"{path} is not listed in {INDEX_NAME}, so it is never read; delete it or build the shards again."


def _check_contents(index: ShardIndex, shards: list[Shard], sound: list[int], progress: Progress | None, workers: int) -> Iterator[str]:
    keys = np.full(index.samples, UNKNOWN)
    misplaced: set[int] = set()
    looked_at = without_query = 0
    for part, findings in share_out(Examiner(shards), list(parts_of(index, sound)), workers):
        if findings.misplaced:
            misplaced.add(part.shard)
        if part.start == 0 or part.shard not in misplaced:
            yield from findings.problems
            keys[part.first : part.first + len(findings.keys)] = findings.keys
            looked_at += findings.sound
            without_query += findings.without_query
        if progress:
            progress(part.first + part.stop - part.start, index.samples)
    if progress:
        progress(index.samples, index.samples)
    yield from _repeated(index, shards, keys)
    if looked_at == index.samples and without_query != index.targets_only:
        yield f"{INDEX_NAME} says that {index.targets_only} of the samples have no query, and {without_query} have none; build the shards again."


def _repeated(index: ShardIndex, shards: list[Shard], keys: np.ndarray) -> Iterator[str]:
    starts = [0, *accumulate(entry.samples for entry in index.shards)]

    def shard_of(sample: int) -> int:
        return bisect.bisect_right(starts, sample) - 1

    for key, first, other in repeated_keys(keys, lambda sample: _key_of(shards[shard_of(sample)], sample - starts[shard_of(sample)])):
        names = [shards[shard_of(sample)].entry.name for sample in (first, other)]
        yield f"The key '{key}' is there twice, in {names[0]} and in {names[1]}; keys must be unique."


def _key_of(shard: Shard, row: int) -> str:
    try:
        return shard.record(row)[0]
    except SampleError as error:
        return error.key
