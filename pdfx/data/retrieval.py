"""Reading shards for evaluation: every query once, every distinct target once, shared out evenly over ranks.

A record without a query is a target that is only searched in. Where records carry ``candidates``, each query is ranked against its own alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from pdfx.errors import UserError

from .collate import Processor, filler
from .schema import identity_number
from .shards import SampleError, ShardedDataset
from .workers import run_ahead

FILLER = -1
"""In place of a sample's number: an empty item, so that every rank runs the same number of batches; its embedding is to be dropped."""

_NAME_ALL = "Build the shards again, from records whose candidates hold the query's target_id and the target_id of other records alone."


class Candidates(NamedTuple):
    """The targets that each of n queries is ranked against: of query q those in the rows ``rows[starts[q]:starts[q + 1]]`` of the targets."""

    rows: np.ndarray
    """int64 [sum of the queries' candidates]: ascending and without repetition within each query."""
    starts: np.ndarray
    """int64 [n + 1]"""


class Items(NamedTuple):
    """Queries or targets. Row r is that side of sample ``samples[r]``."""

    samples: np.ndarray
    """int64 [n]"""
    target_ids: np.ndarray
    """int64 [n]: of a query, the identity of its target; of a target, its own."""
    candidates: Candidates | None = None
    """Of queries; None where each is ranked against all targets."""


class RetrievalItems(NamedTuple):
    queries: Items
    targets: Items


def retrieval_items(dataset: ShardedDataset) -> RetrievalItems:
    """All queries, and the targets without repetition (the first sample that bears an identity stands for it). Reads no images.

    Raises:
        UserError: a sample is damaged, there is no query, or a query's candidates lack its own target or name one that is not there; an evaluation over
            fewer samples would be another evaluation.
    """
    numbers = _IdentityNumbers()
    ids, asking, keys, listed = [], [], [], []
    try:
        for sample, (key, record) in enumerate(dataset.records()):
            ids.append(numbers[record.target_id])
            if record.query is not None:
                asking.append(sample)
                keys.append(key)
                listed.append(None if record.candidates is None else np.array([numbers[identity] for identity in record.candidates], dtype=np.int64))
    except SampleError as error:
        raise _refusal(dataset, str(error)) from None
    if not asking:
        raise UserError(f"The evaluation data {dataset.path} holds no query, only targets to search in; build it from records with queries.")
    unique, first = np.unique(np.array(ids, dtype=np.int64), return_index=True)
    order = np.argsort(first)
    targets = Items(first[order].astype(np.int64), unique[order])
    samples = np.array(asking, dtype=np.int64)
    queries = Items(samples, np.array(ids, dtype=np.int64)[samples])
    if any(own is not None for own in listed):
        queries = queries._replace(candidates=_find_candidates(dataset, keys, queries.target_ids, listed, targets.target_ids))
    return RetrievalItems(queries, targets)


class _IdentityNumbers(dict):
    """The number of each identity. Candidates name the same few identities again and again, and hashing is slower than looking up."""

    def __missing__(self, identity: str) -> int:
        number = self[identity] = identity_number(identity)
        return number


def _find_candidates(dataset: ShardedDataset, keys: list[str], own_ids: np.ndarray, listed: list[np.ndarray | None], target_ids: np.ndarray) -> Candidates:
    """Where the candidates stand among the targets; all targets are the candidates of a query that names none."""
    order = np.argsort(target_ids)
    rows = []
    for key, own_id, ids in zip(keys, own_ids, listed, strict=True):
        if ids is None:
            rows.append(np.arange(len(target_ids), dtype=np.int64))
            continue
        if own_id not in ids:
            raise _refusal(dataset, f"The candidates of sample '{key}' lack its own target, so it could never be found.", _NAME_ALL)
        found = order[np.searchsorted(target_ids, ids, sorter=order).clip(max=len(order) - 1)]
        absent = int((target_ids[found] != ids).sum())
        if absent:
            raise _refusal(dataset, f"Of the {len(ids)} candidates of sample '{key}' {absent} are the target of no sample.", _NAME_ALL)
        rows.append(np.unique(found))
    return Candidates(np.concatenate(rows), np.cumsum([0, *map(len, rows)], dtype=np.int64))


def share_of_rank(samples: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """This rank's contiguous share, filled up with FILLER so that all ranks' shares have the same length, ceil(n / W)."""
    length = -(-len(samples) // world_size)
    own = samples[rank * length : (rank + 1) * length]
    return np.concatenate([own, np.full(length - len(own), FILLER, dtype=np.int64)])


def iterate_inputs(
    dataset: ShardedDataset,
    samples: Sequence[int] | np.ndarray,
    side: Literal["query", "target"],
    processor: Processor,
    batch_size: int,
    num_workers: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """The processor's inputs for one side of the given samples, ``batch_size`` at a time and in their order; FILLER gives an empty item.

    Raises:
        UserError: a sample is damaged.
    """
    numbers = [int(number) for number in samples]
    requests = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    yield from run_ahead(SideReader(dataset, side, processor), requests, num_workers, prefetch=2 * max(num_workers, 1), seed=0)


class SideReader:
    """From sample numbers to the inputs of one side; what workers run."""

    def __init__(self, dataset: ShardedDataset, side: str, processor: Processor):
        self.dataset, self.side, self.processor = dataset, side, processor

    def __call__(self, numbers: list[int]) -> dict[str, Tensor]:
        found = iter(self.dataset.read_items([number for number in numbers if number != FILLER], self.side))
        items = [filler() if number == FILLER else next(found) for number in numbers]
        error = next((item for item in items if isinstance(item, SampleError)), None)
        if error is not None:
            raise _refusal(self.dataset, str(error))
        inputs, _ = self.processor(items, [self.side] * len(items))
        return inputs


def _refusal(dataset: ShardedDataset, sentence: str, cure: str = "Find all such samples with 'pdfx shards check --full'.") -> UserError:
    return UserError(f"The evaluation data {dataset.path} must be sound. {sentence} {cure}")
