"""Reading shards for evaluation: every distinct query and every distinct target once, shared out evenly over ranks.

Samples give the same target if ``target_id``, text and pictures' bytes are the same, and the same query likewise.
Targets of one ``target_id`` that differ are several targets, each right for its queries. A record without a query is a
target that is only searched in. If records carry ``candidates``, each query is ranked against its own alone, and the
query of every record counts.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple, cast

import numpy as np
from torch import Tensor

from pdfx.data.batch import Processor, filler, process_usable
from pdfx.data.numbers import NumberTable
from pdfx.data.schema import Side, content_identity, identity_number
from pdfx.data.shards import SampleError, ShardedDataset
from pdfx.data.workers import run_ahead
from pdfx.errors import UserError

FILLER = -1
"""In place of a sample's number: an empty item, so that every rank runs the same number of batches; its embedding is to
be dropped."""


class Candidates(NamedTuple):
    """The candidates of each of n queries: for query q the targets in ``rows[starts[q]:starts[q + 1]]``."""

    rows: np.ndarray
    """int64 [sum of the queries' candidates]: ascending and without repetition within each query."""
    starts: np.ndarray
    """int64 [n + 1]"""


class Items(NamedTuple):
    """Queries or targets. Row r is that side of sample ``samples[r]``."""

    samples: np.ndarray
    """int64 [n]"""
    target_ids: np.ndarray
    """int64 [n]: of a query, the identity of its targets; of a target, its own."""
    candidates: Candidates | None = None
    """Of queries; None if each is ranked against all targets."""


class RetrievalItems(NamedTuple):
    queries: Items
    targets: Items
    problems: dict[int, str]
    """A sentence about each sample whose record is damaged, by its number; no row is of such a sample."""


def retrieval_items(dataset: ShardedDataset) -> RetrievalItems:
    """All distinct queries and targets (the first sample that gives one stands for it); with candidates, the query of
    every record.

    Reads records, and pictures only of samples with the same ``target_id``, text and number of pictures as another one:
    their bytes tell whether they are the same. Memory holds numbers and the key of each sample, and the pictures of one
    sample at a time.

    Raises:
        UserError: there is no query, or a query's candidates lack its own target or name one that is not there.
    """
    # Candidates name the same few identities again and again, and hashing is slower than looking up.
    number_of, problems = cache(identity_number), {}
    queries, targets, keys, listed = _Side("query"), _Side("target"), [], []
    for sample, found in enumerate(dataset.heads()):
        if isinstance(found, SampleError):
            problems[sample] = str(found)
            continue
        key, record = found
        identity = cast(str, record.target_id)
        targets.add(sample, identity, number_of(identity), record.target)
        if record.query is not None:
            queries.add(sample, identity, number_of(identity), record.query)
            keys.append(key)
            own = record.candidates
            listed.append(None if own is None else np.array([*map(number_of, own)], dtype=np.int64))
    if not keys:
        raise UserError(
            f"The evaluation data {dataset.path} holds no query, only targets to search in; build it from records "
            "with queries."
        )
    distinct = targets.distinct(dataset)
    if all(own is None for own in listed):
        return RetrievalItems(queries.distinct(dataset), distinct, problems)
    asked = queries.all()
    candidates = _find_candidates(dataset, keys, asked.target_ids, listed, distinct.target_ids, lenient=bool(problems))
    return RetrievalItems(asked._replace(candidates=candidates), distinct, problems)


class _Side:
    """One side of all samples that have it."""

    def __init__(self, name: Literal["query", "target"]):
        self.name = name
        self._samples, self._ids, self._contents, self._pictures = (array("q") for _ in range(4))

    def add(self, sample: int, target_id: str, number: int, side: Side) -> None:
        self._samples.append(sample)
        self._ids.append(number)
        self._contents.append(identity_number(f"{target_id}\0{len(side.images)}\0{side.text}"))
        self._pictures.append(len(side.images))

    def all(self) -> Items:
        return Items(np.array(self._samples), np.array(self._ids))

    def distinct(self, dataset: ShardedDataset) -> Items:
        contents = np.array(self._contents)
        _, group, sizes = np.unique(contents, return_inverse=True, return_counts=True)
        open_rows = np.flatnonzero((sizes[group] > 1) & (np.array(self._pictures) > 0))
        samples = np.array(self._samples)
        unsure = samples[open_rows]
        contents[open_rows] = list(map(self._read_content, unsure, dataset.raw_many(unsure.tolist())))
        rows = np.sort(np.unique(contents, return_index=True)[1])
        return Items(samples[rows], np.array(self._ids)[rows])

    def _read_content(self, sample: int, found: tuple | SampleError) -> int:
        if isinstance(found, SampleError):
            # Equal to nothing; it is reported when it is to be embedded.
            return identity_number(f"damaged\0{sample}")
        _, record, members = found
        side = getattr(record, self.name)
        pictures = [members.get(name, b"") for name in side.images]
        return identity_number(f"{record.target_id}\0{content_identity(side.text, pictures)}")


def _find_candidates(
    dataset: ShardedDataset,
    keys: list[str],
    own_ids: np.ndarray,
    listed: list[np.ndarray | None],
    target_ids: np.ndarray,
    lenient: bool,
) -> Candidates:
    """Where the candidates stand among the targets; all targets are the candidates of a query that names none.

    Args:
        lenient: leave out candidates that are not there, since their records may be damaged.
    """
    table, rows = NumberTable(target_ids), []
    for key, own_id, ids in zip(keys, own_ids, listed, strict=True):
        if ids is None:
            rows.append(np.arange(len(target_ids), dtype=np.int64))
            continue
        if own_id not in ids:
            lack = f"The candidates of sample '{key}' lack its own target, so it could never be found."
            raise _refusal(dataset, lack)
        first, stop = table.bounds(ids)
        absent = int((first == stop).sum())
        if absent and not lenient:
            lack = f"Of the {len(ids)} candidates of sample '{key}' {absent} are the target of no sample."
            raise _refusal(dataset, lack)
        rows.append(np.unique(table.values[_ranges(first, stop)]))
    return Candidates(np.concatenate(rows), np.cumsum([0, *map(len, rows)], dtype=np.int64))


def _ranges(first: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """The numbers from each ``first`` to below its ``stop``, one range after another."""
    sizes = stop - first
    return np.arange(sizes.sum()) + np.repeat(first - np.cumsum(sizes) + sizes, sizes)


def left_after(
    items: RetrievalItems, bad_queries: Collection[int], bad_targets: Collection[int]
) -> tuple[np.ndarray, np.ndarray, Candidates | None]:
    """What remains without the queries and the targets of samples that cannot be used.

    A query goes as well if no target that is right for it remains. Where all targets had a query, so does a target
    without a remaining query, so that both directions are those of data without the unusable samples.

    Returns:
        Rows of the remaining queries, of the remaining targets, and the candidates of the former among the latter.
    """
    queries, targets, _ = items
    ask, found = ~np.isin(queries.samples, list(bad_queries)), ~np.isin(targets.samples, list(bad_targets))
    ask &= np.isin(queries.target_ids, targets.target_ids[found])
    if queries.candidates is None and np.isin(targets.target_ids, queries.target_ids).all():
        found &= np.isin(targets.target_ids, queries.target_ids[ask])
    candidates = queries.candidates
    if candidates is not None:
        owner = np.repeat(np.arange(len(ask)), np.diff(candidates.starts))
        kept = ask[owner] & found[candidates.rows]
        sizes = np.bincount(owner[kept], minlength=len(ask))[ask]
        candidates = Candidates((np.cumsum(found) - 1)[candidates.rows[kept]], np.cumsum([0, *sizes], dtype=np.int64))
    return np.flatnonzero(ask), np.flatnonzero(found), candidates


def share_of_rank(samples: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """This rank's contiguous share, filled up with FILLER to the same length on all ranks, ceil(n / W)."""
    length = -(-len(samples) // world_size)
    own = samples[rank * length : (rank + 1) * length]
    return np.concatenate([own, np.full(length - len(own), FILLER, dtype=np.int64)])


class SideBatch(NamedTuple):
    """What is to be embedded in one forward pass."""

    inputs: dict[str, Tensor]
    """The processor's output, with an empty item in the place of each that cannot be used."""
    truncated: int
    """Texts that were cut."""
    problems: dict[int, str]
    """A sentence about each sample that cannot be used, by its number."""


def iterate_inputs(
    dataset: ShardedDataset,
    samples: Sequence[int] | np.ndarray,
    side: Literal["query", "target"],
    processor: Processor,
    batch_size: int,
    num_workers: int = 0,
) -> Iterator[SideBatch]:
    """One side of the given samples, ``batch_size`` at a time and in their order; FILLER gives an empty item."""
    numbers = [int(number) for number in samples]
    requests = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    yield from run_ahead(
        SideReader(dataset, side, processor), requests, num_workers, prefetch=2 * max(num_workers, 1), seed=0
    )


@dataclass
class SideReader:
    """From sample numbers to the inputs of one side; what workers run."""

    dataset: ShardedDataset
    side: str
    processor: Processor

    def __call__(self, numbers: list[int]) -> SideBatch:
        found = iter(self.dataset.read_items([number for number in numbers if number != FILLER], self.side))
        items = [filler() if number == FILLER else next(found) for number in numbers]
        parts = [
            item if isinstance(item, SampleError) else (number, item)
            for number, item in zip(numbers, items, strict=True)
        ]
        parts, (inputs, truncated) = process_usable(
            parts, self._process, lambda part, reason: self.dataset.refused(part[0], reason)
        )
        numbered = zip(numbers, parts, strict=True)
        problems = {number: str(part) for number, part in numbered if isinstance(part, SampleError)}
        return SideBatch(inputs, truncated, problems)

    def _process(self, parts: list[tuple[int, dict] | SampleError]) -> tuple[dict[str, Tensor], int]:
        items = [filler() if isinstance(part, SampleError) else part[1] for part in parts]
        return self.processor(items, [self.side] * len(parts))


def _refusal(dataset: ShardedDataset, sentence: str) -> UserError:
    return UserError(
        f"The evaluation data {dataset.path} cannot be ranked. {sentence} Build the shards again, from records whose "
        "candidates hold the query's target_id and the target_id of other records alone."
    )
