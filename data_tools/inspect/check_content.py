"""Examining what a directory of shards holds: each part for itself, and what only all of them together tell."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

import numpy as np

from data_tools.build.builder import Progress
from data_tools.build.duplicate_keys import repeated_keys
from data_tools.build.shard_stats import read_stats
from data_tools.build.stats import NAMES
from data_tools.build.work_units import Part, parts_of, share_out
from data_tools.inspect.check_samples import Examiner, Findings, Processor
from pdfx.data.schema import INDEX_NAME, ShardEntry, ShardIndex
from pdfx.data.shards import SampleError, Shard
from pdfx.data.storage.base import Storage
from pdfx.errors import UserError


def content_problems(
    storage: Storage,
    index: ShardIndex,
    shards: list[Shard],
    readable: list[int],
    progress: Progress | None,
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
    for part, findings in share_out(Examiner(storage, shards, processor), list(parts_of(index, readable)), workers):
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
        self._counts = [Counter() for _ in shards]
        self._misplaced: set[int] = set()
        self._target_ids = array("q")
        self._candidates: set[int] = set()

    def take(self, part: Part, findings: Findings) -> list[str]:
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
        """Judged only where every target is known."""
        absent = self._candidates.difference(self._target_ids) if len(self._target_ids) == self.index.samples else ()
        if absent:
            yield (
                f"No sample has the target of {len(absent)} of the {len(self._candidates)} identities that samples "
                "name as candidates; build them again."
            )

    def wrong_counts(self) -> Iterator[str]:
        """Statistics that do not fit what was counted, where every sample of a shard was."""
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
            # Told already.
            return []
        # How many pictures a build encoded anew cannot be seen from them.
        return [name for name in NAMES if name != "images_reencoded" and stats[name] != counts[name]]
