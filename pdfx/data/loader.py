"""The training loader: batches of the canonical order, for any number of workers, resumable at any world size."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from pdfx.config import DataSection
from pdfx.data.batch import Batch, Processor, collate, collate_by_tokens
from pdfx.data.corrupt_samples import CorruptSampleGuard, Coverage
from pdfx.data.order import Mixture
from pdfx.data.shards import Sample, SampleError, ShardedDataset
from pdfx.data.training_sets import Sequence, open_training_sets
from pdfx.data.workers import run_ahead


@dataclass
class BatchReader:
    """From the places of one batch's samples to the batch; what workers run."""

    datasets: list[ShardedDataset]
    processor: Processor
    chunk_pairs: int
    negatives: int
    chunk_tokens: int | None

    def __call__(self, places: list[tuple[int, int]]) -> Batch:
        samples = self._read(places)
        if self.chunk_tokens is None:
            batch = collate(samples, self.processor, self.chunk_pairs, self.negatives)
        else:
            batch = collate_by_tokens(samples, self.processor, self.chunk_tokens, self.negatives)
        unusable = [source for (source, _), valid in zip(places, batch.valid.tolist(), strict=True) if not valid]
        batch.problems = [
            replace(problem, data_set=source) for problem, source in zip(batch.problems, unusable, strict=True)
        ]
        return batch

    def _read(self, places: list[tuple[int, int]]) -> list[Sample | SampleError]:
        """The samples at ``places``; those of one data set are asked for together, to be fetched side by side."""
        samples: dict[int, Sample | SampleError] = {}
        for source in {source for source, _ in places}:
            own = [slot for slot, place in enumerate(places) if place[0] == source]
            samples |= zip(own, self.datasets[source].read_many([places[slot][1] for slot in own]), strict=True)
        return [samples[slot] for slot in range(len(places))]


class TrainLoader:
    """An endless iterator of this rank's batches.

    With B = ``batch_pairs * chunks`` pairs per rank and G = W * B, step s reads positions ``[start + s*G, start +
    (s+1)*G)`` of the canonical order, and this rank takes ``[start + s*G + rank*B, start + s*G + (rank+1)*B)`` of them;
    ``start`` is 0 or the state's count. Epochs follow one another without a gap, so every sample is read exactly once
    per epoch and none is dropped between epochs. Where the run ends is for its owner: samples of the last epoch that do
    not fill G pairs are not read.

    Args:
        data: the run's ``data`` section.
        processor: ``processor(items, sides) -> (inputs, truncated)``; must be picklable if ``data.num_workers`` > 0,
            and have ``select_items`` if ``chunk_tokens`` is set.
        batch_pairs: pairs of a chunk on one rank (``train.per_device_train_batch_size``).
        chunks: chunks of a batch (``train.gradient_accumulation_steps``).
        seed: the run's seed.
        state: what ``state_dict`` gave, perhaps under another world size, batch size, size of sub-batches or number of
            workers; the sequence continues where it stopped.
        chunk_tokens: tokens of one path that a chunk holds at most; chunks of ``batch_pairs`` pairs if None.

    Raises:
        UserError: the shards are missing, incomplete or empty, or do not fit ``state``.
    """

    def __init__(
        self,
        data: DataSection,
        processor: Processor,
        rank: int,
        world_size: int,
        batch_pairs: int,
        chunks: int,
        seed: int,
        state: dict | None = None,
        chunk_tokens: int | None = None,
    ):
        self.sets = open_training_sets(data)
        self._sequence = Sequence(self.sets, data, seed, state)
        self.samples = int(state["samples"]) if state else 0
        """Samples handed out so far, over all ranks and epochs."""
        self.guard = CorruptSampleGuard(data.max_corrupt_share, state)
        """The trainer reports the counts of all ranks to it, once per step."""
        self.coverage = Coverage(
            [own.name for own in self.sets], self._sequence.sizes, state["unusable"] if state else None
        )
        """Likewise."""
        self._global_pairs = batch_pairs * chunks * world_size
        self._batches = run_ahead(
            BatchReader(
                [own.dataset for own in self.sets], processor, batch_pairs, data.hard_negatives or 0, chunk_tokens
            ),
            rank_requests(self._sequence.mixture, self.samples, rank, world_size, batch_pairs * chunks),
            data.num_workers,
            data.prefetch_batches,
            seed,
            pin_memory=torch.cuda.is_available(),
        )

    @property
    def dataset(self) -> ShardedDataset:
        """The first data set."""
        return self.sets[0].dataset

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch over all data sets, each as often as its share says."""
        return self._sequence.mixture.epoch_samples

    @property
    def epochs(self) -> int:
        """Epochs that were handed out in full."""
        return self._sequence.mixture.epoch_of(self.samples)

    def coverage_report(self) -> dict:
        """What was read of each data set so far; see ``Coverage.report``."""
        return self.coverage.report(self._sequence.mixture.consumed(self.samples))

    def __iter__(self) -> TrainLoader:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.samples += self._global_pairs
        return batch

    def state_dict(self) -> dict:
        """Plain counters, the same on every rank; they count batches that were handed out."""
        return {
            "samples": self.samples,
            **self._sequence.state_dict(),
            **self.guard.state_dict(),
            "unusable": self.coverage.unusable,
        }


def rank_requests(
    mixture: Mixture, start: int, rank: int, world_size: int, pairs: int
) -> Iterator[list[tuple[int, int]]]:
    """Endlessly, the places (data set, number) of one rank's samples of a step, ``pairs`` of them; the first step of
    all ranks begins at position ``start`` of the canonical order."""
    return (mixture.samples(first, pairs) for first in itertools.count(start + rank * pairs, world_size * pairs))
