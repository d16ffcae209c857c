"""Examining a directory of shards, and telling every problem instead of the first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_tools.build.builder import Progress
from data_tools.build.journal import FOLDER_NAME
from data_tools.build.shard_stats import read_stats
from data_tools.build.staged_directory import STAGING_NAME
from data_tools.inspect.check_content import content_problems
from data_tools.inspect.check_samples import Processor
from pdfx.data.schema import INDEX_NAME, ShardIndex
from pdfx.data.shards import Shard, no_index, read_index
from pdfx.data.storage.base import Storage, StorageError
from pdfx.data.storage.opening import open_storage
from pdfx.errors import UserError
from pdfx.model.pictures import MAX_IMAGE_PIXELS


def check_shards(
    path: str | Path,
    full: bool = False,
    progress: Progress | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    workers: int = 1,
    processor: Processor | None = None,
) -> list[str]:
    """All problems of a directory of shards, one sentence each; an empty list where it is sound.

    Args:
        path: a local directory, or a URL that fsspec knows. What else lies behind a URL is not looked at.
        full: also compare checksums, offsets and statistics with the tars, look for repeated keys, and decode every
            sample. Otherwise only the index, the sizes of files, the form of offsets and statistics, and what else lies
            in the directory are looked at. A full check of a shard whose tar or offsets are missing, or do not fit the
            index, stays a quick one.
        progress: called with (samples done, samples in all).
        workers: processes that a full check uses. It holds 16 bytes per sample, and one sample at a time in each
            process.
        processor: a model's, which a full check also runs on every query, target and negative.

    Raises:
        UserError: there is no such directory, or its URL cannot be reached.
    """
    storage = open_storage(path)
    _require_place(storage)
    problems = [] if storage.remote else list(_remains(Path(path)))
    try:
        index = read_index(storage)
    except UserError as error:
        return [*problems, str(error)]
    if not storage.remote:
        problems += _unlisted(Path(path), index)
    shards = [Shard(storage, entry, max_image_pixels) for entry in index.shards]
    readable = []
    for number, (is_readable, of_shard) in enumerate(storage.map(lambda shard: _look_over(storage, shard), shards)):
        problems += of_shard
        if is_readable:
            readable.append(number)
    if full:
        problems += content_problems(storage, index, shards, readable, progress, workers, processor)
    elif progress:
        progress(index.samples, index.samples)
    return problems


def _require_place(storage: Storage) -> None:
    """Raises UserError if nothing can be said about shards, sound or not."""
    if not storage.remote and not Path(storage.path).is_dir():
        raise UserError(no_index(storage))
    try:
        storage.load(INDEX_NAME)
    except StorageError as error:
        if storage.remote and not error.missing:
            raise UserError(
                f"The shards at {storage.path} cannot be checked, since they cannot be reached: {error}."
            ) from None


def _remains(directory: Path) -> Iterator[str]:
    if (directory / FOLDER_NAME).exists():
        yield f"{directory} holds an unfinished build; give the same command again, and it goes on where it stopped."
    if (directory / STAGING_NAME).exists():
        yield (
            f"{directory} holds what a split or a merge that was stopped left behind; delete the directory, and "
            "give the same command again."
        )


def _unlisted(directory: Path, index: ShardIndex) -> Iterator[str]:
    listed = {name for entry in index.shards for name in (entry.name, entry.offsets_name, entry.stats_name)}
    for path in sorted(directory.iterdir()):
        if path.name not in listed and path.name.endswith((".tar", ".idx.npy", "_stats.json")):
            yield f"{path} is not listed in {INDEX_NAME}, so it is never read; delete it or build the shards again."


def _look_over(storage: Storage, shard: Shard) -> tuple[bool, list[str]]:
    """Whether tar and offsets can be read, and the problems of all three files."""
    problems = []
    try:
        shard.check_sizes()
        _ = shard.offsets
    except UserError as error:
        problems.append(str(error))
    is_readable = not problems
    try:
        read_stats(storage, shard.entry)
    except UserError as error:
        problems.append(str(error))
    return is_readable, problems
