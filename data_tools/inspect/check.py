"""Examining a directory of shards, and telling every problem instead of the first."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np

from data_tools.build.journal import FOLDER_NAME
from data_tools.build.ordered_workers import WorkUnit, share_out, work_units
from data_tools.build.shard_writer import STAGING_NAME, STATISTICS, read_stats
from data_tools.inspect.check_samples import Examiner, Findings, Processor
from pdfx.data.numbers import repeated_keys
from pdfx.data.samples import SampleError
from pdfx.data.schema import INDEX_NAME, ShardEntry, ShardIndex
from pdfx.data.shard import Shard
from pdfx.data.shards import no_index, read_index
from pdfx.data.storage.base import Storage, StorageError
from pdfx.data.storage.local import open_storage
from pdfx.errors import UserError
from pdfx.host.console import ShowProgress
from pdfx.model.pictures import MAX_IMAGE_PIXELS


def check_shards(
    path: str | Path,
    full: bool = False,
    progress: ShowProgress | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    workers: int = 1,
    processor: Processor | None = None,
) -> list[str]:
    """All problems of a directory of shards, one sentence each; an empty list if it is sound.

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
        yield f"{directory} holds an unfinished build; give the same command again, and it resumes where it stopped."
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


def content_problems(
    storage: Storage,
    index: ShardIndex,
    shards: list[Shard],
    readable: list[int],
    progress: ShowProgress | None,
    workers: int,
    processor: Processor | None = None,
) -> Iterator[str]:
    """One sentence for each problem of the tars' content.

    Args:
        shards: all that the index lists.
        readable: the numbers of those whose files have the right sizes and forms.
        progress: called with (samples done, samples in all).
        processor: a model's, to be run on every side of every sample.
    """
    content = _Content(storage, index, shards)
    for part, findings in share_out(Examiner(storage, shards, processor), list(work_units(index, readable)), workers):
        yield from content.take(part, findings)
        if progress:
            progress(part.first + part.stop - part.start, index.samples)
    yield from content.repeated_keys()
    yield from content.absent_candidates()
    yield from content.wrong_counts()
    if progress:
        progress(index.samples, index.samples)


class _Content:
    """What the parts that were examined so far tell together."""

    def __init__(self, storage: Storage, index: ShardIndex, shards: list[Shard]):
        self.storage, self.index, self.shards = storage, index, shards
        # Grown by what was read: the index may claim any number of samples.
        self._keys = array("q")
        self._runs: list[tuple[int, int]] = []
        self._counts: list[Counter[str]] = [Counter() for _ in shards]
        self._misplaced: set[int] = set()
        self._target_ids = array("q")
        self._candidates: set[int] = set()

    def take(self, part: WorkUnit, findings: Findings) -> list[str]:
        """The problems of one more part, as far as they are its own."""
        if findings.misplaced:
            self._misplaced.add(part.shard)
        elif part.shard in self._misplaced:
            # Cut at the wrong places, every sample would be one.
            return []
        self._runs.append((len(self._keys), part.first))
        self._keys += findings.keys
        self._counts[part.shard].update(findings.counts)
        self._target_ids += findings.target_ids
        self._candidates |= findings.candidates
        return findings.problems

    def repeated_keys(self) -> Iterator[str]:
        starts = list(accumulate((entry.samples for entry in self.index.shards), initial=0))

        def place_of(number: int) -> tuple[Shard, int]:
            begin, first = self._runs[bisect_right(self._runs, (number, self.index.samples)) - 1]
            sample = first + number - begin
            shard = bisect_right(starts, sample) - 1
            return self.shards[shard], sample - starts[shard]

        def key_of(number: int) -> str:
            shard, row = place_of(number)
            try:
                return shard.record(row)[0]
            except SampleError as error:
                return error.key

        for key, first, other in repeated_keys(np.frombuffer(self._keys, dtype=np.int64), key_of):
            names = [place_of(number)[0].entry.name for number in (first, other)]
            yield f"The key '{key}' is there twice, in {names[0]} and in {names[1]}; keys must be unique."

    def absent_candidates(self) -> Iterator[str]:
        """Judged only if every target is known."""
        absent = self._candidates.difference(self._target_ids) if len(self._target_ids) == self.index.samples else ()
        if absent:
            yield (
                f"No sample has the target of {len(absent)} of the {len(self._candidates)} identities that samples "
                "name as candidates; build them again."
            )

    def wrong_counts(self) -> Iterator[str]:
        """Statistics that do not fit what was counted, if every sample of a shard was."""
        complete = True
        for shard, counts in zip(self.shards, self._counts, strict=True):
            if counts["samples"] != shard.entry.samples:
                complete = False
            elif wrong := self._wrong_names(shard.entry, counts):
                yield (
                    f"The statistics of the shard {shard.path} are not those of its samples ({', '.join(wrong)}); "
                    "build it again."
                )
        without_query = sum(counts["targets_only"] for counts in self._counts)
        if complete and without_query != self.index.targets_only:
            yield (
                f"{INDEX_NAME} says that {self.index.targets_only} samples have no query, and {without_query} have "
                "none; build the shards again."
            )

    def _wrong_names(self, entry: ShardEntry, counts: Counter[str]) -> list[str]:
        try:
            stats = read_stats(self.storage, entry)
        except UserError:
            # Reported already.
            return []
        # How many pictures a build encoded again cannot be seen from them.
        return [name for name in STATISTICS if name != "images_reencoded" and stats[name] != counts[name]]
