"""Sharing out the samples of a directory of shards among worker processes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from data_tools.build.ordered_workers import run_in_order
from pdfx.data.schema import ShardIndex

PART_SAMPLES = 256
Result = TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """Consecutive samples of one shard: rows ``start`` to ``stop`` (exclusive) of the index's shard number
    ``shard``."""

    shard: int
    start: int
    stop: int
    first: int
    """Number of the part's first sample among those of the directory."""


def parts_of(index: ShardIndex, shards: list[int] | None = None) -> Iterator[Part]:
    """The samples of all shards, or of those that are given, in order, in parts of at most ``PART_SAMPLES``. An empty
    shard is one empty part."""
    first = 0
    for shard, entry in enumerate(index.shards):
        if shards is None or shard in shards:
            for start in range(0, max(1, entry.samples), PART_SAMPLES):
                yield Part(shard, start, min(start + PART_SAMPLES, entry.samples), first + start)
        first += entry.samples


def share_out(job: Callable[[Part], Result], parts: list[Part], workers: int) -> Iterator[tuple[Part, Result]]:
    """(part, ``job(part)``) for each part, in order. ``job`` is picklable; with one worker, or one part, this process
    does the work.

    Raises:
        UserError: what the job raises, or a worker was killed.
    """
    processes = min(workers, len(parts))
    return run_in_order(job, parts, processes if processes > 1 else 0)


def drawn_samples(samples: int, count: int) -> list[int]:
    """At most ``count`` of the numbers below ``samples``, ascending; always the same ones."""
    return sorted(random.Random(0).sample(range(samples), min(count, samples)))
