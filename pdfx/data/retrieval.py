"""Reading shards for evaluation: every query once, every distinct target once, shared out evenly over ranks."""

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


class Items(NamedTuple):
    """Queries or targets. Row r is that side of sample ``samples[r]``."""

    samples: np.ndarray
    """int64 [n]"""
    target_ids: np.ndarray
    """int64 [n]: of a query, the identity of its target; of a target, its own."""


class RetrievalItems(NamedTuple):
    queries: Items
    targets: Items


def retrieval_items(dataset: ShardedDataset) -> RetrievalItems:
    """All queries, and the targets without repetition (the first sample that bears an identity stands for it). Reads no images.

    Raises:
        UserError: a sample is damaged; an evaluation over fewer samples would be another evaluation.
    """
    try:
        ids = np.array([identity_number(record.target_id) for _, record in dataset.records()], dtype=np.int64)
    except SampleError as error:
        raise _refusal(dataset, error) from None
    unique, first = np.unique(ids, return_index=True)
    order = np.argsort(first)
    return RetrievalItems(Items(np.arange(len(ids), dtype=np.int64), ids), Items(first[order].astype(np.int64), unique[order]))


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
        try:
            items = [filler() if number == FILLER else self.dataset.read_item(number, self.side) for number in numbers]
        except SampleError as error:
            raise _refusal(self.dataset, error) from None
        inputs, _ = self.processor(items, [self.side] * len(items))
        return inputs


def _refusal(dataset: ShardedDataset, error: SampleError) -> UserError:
    return UserError(f"The evaluation data {dataset.path} must be sound. {error} Find all such samples with 'pdfx shards check --full'.")
