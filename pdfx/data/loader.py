"""The training loader: batches cut from the canonical order, the same for any number of workers, resumable by counters at any world size."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from pdfx.config import DataSection
from pdfx.errors import UserError

from .batch import Batch
from .collate import Processor, collate, collate_by_tokens
from .guard import CorruptSampleGuard
from .order import CanonicalOrder
from .shards import Sample, SampleError, ShardedDataset
from .workers import run_ahead


class BatchReader:
    """From the numbers of one batch's samples to the batch; what workers run."""

    def __init__(self, dataset: ShardedDataset, processor: Processor, chunk_pairs: int, negatives: int, chunk_tokens: int | None):
        self.dataset, self.processor, self.chunk_pairs, self.negatives, self.chunk_tokens = dataset, processor, chunk_pairs, negatives, chunk_tokens

    def __call__(self, numbers: list[int]) -> Batch:
        samples = [self._read(number) for number in numbers]
        if self.chunk_tokens is None:
            return collate(samples, self.processor, self.chunk_pairs, self.negatives)
        return collate_by_tokens(samples, self.processor, self.chunk_tokens, self.negatives)

    def _read(self, number: int) -> Sample | SampleError:
        try:
            return self.dataset.read(number)
        except SampleError as error:
            return error


class TrainLoader:
    """An endless iterator of this rank's batches.

    With B = ``batch_pairs * chunks`` pairs per rank and G = W * B, step s reads positions ``[start + s*G, start + (s+1)*G)`` of the canonical order,
    and this rank takes ``[start + s*G + rank*B, start + s*G + (rank+1)*B)`` of them; ``start`` is 0 or the state's count. Epochs follow one another
    without a gap, so every sample is read exactly once per epoch and none is dropped.

    Args:
        data: the run's ``data`` section.
        processor: ``processor(items, sides) -> (inputs, truncated)``; must be picklable where ``data.num_workers`` > 0, and have ``select_items``
            where ``chunk_tokens`` is set.
        batch_pairs: pairs of a chunk on one rank (``train.per_device_train_batch_size``).
        chunks: chunks of a batch (``train.gradient_accumulation_steps``).
        seed: the run's seed.
        state: what ``state_dict`` gave, perhaps under another world size, batch size or number of workers; the sequence goes on where it stopped.
        chunk_tokens: tokens of one path that a chunk holds at most; chunks of ``batch_pairs`` pairs where None.

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
        self.dataset = ShardedDataset(data.train, data.max_image_pixels)
        if len(self.dataset) == 0:
            raise UserError(f"The shards in {data.train} hold no samples.")
        self._order = CanonicalOrder(self.dataset.shard_sizes, seed, data.span_samples, data.window_spans)
        self._order_settings = {"seed": seed, "span_samples": data.span_samples, "window_spans": data.window_spans}
        self.samples = 0
        """Samples handed out so far, over all ranks and epochs."""
        if state is not None:
            self._check_state(state)
            self.samples = int(state["samples"])
        self.guard = CorruptSampleGuard(data.max_corrupt_share, state)
        """The trainer reports the counts of all ranks to it, once per step."""
        self._global_pairs = batch_pairs * chunks * world_size
        self._batches = run_ahead(
            BatchReader(self.dataset, processor, batch_pairs, data.hard_negatives, chunk_tokens),
            RankRequests(self._order, self.samples, rank, world_size, batch_pairs * chunks),
            data.num_workers,
            data.prefetch_batches,
            seed,
            pin_memory=torch.cuda.is_available(),
        )

    @property
    def epoch_samples(self) -> int:
        return len(self.dataset)

    @property
    def fingerprint(self) -> str:
        return self.dataset.fingerprint

    def __iter__(self) -> TrainLoader:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.samples += self._global_pairs
        return batch

    def state_dict(self) -> dict:
        """Plain counters, the same on every rank; they count batches that were handed out, not those that workers hold ready."""
        return {"samples": self.samples, "fingerprint": self.fingerprint, "order": self._order_settings, **self.guard.state_dict()}

    def _check_state(self, state: dict) -> None:
        if state["fingerprint"] != self.fingerprint:
            raise UserError(
                f"The data folder {self.dataset.path} changed since the checkpoint: its fingerprint is {self.fingerprint[:16]} and the checkpoint's is "
                f"{state['fingerprint'][:16]}; restore the old shards, or start a new run in another train.output_dir."
            )
        for name, value in self._order_settings.items():
            if state["order"][name] != value:
                key = "train.seed" if name == "seed" else f"data.{name}"
                raise UserError(f"{key} is {value} and the checkpoint was made with {state['order'][name]}, so the order of samples would change; set it back.")


class RankRequests:
    """Endlessly, the numbers of one rank's samples, a list per step.

    Args:
        start: position of the canonical order at which the first step of all ranks begins.
        pairs: samples of one rank and step.
    """

    def __init__(self, order: CanonicalOrder, start: int, rank: int, world_size: int, pairs: int):
        self._order, self._pairs = order, pairs
        self._positions = itertools.count(start + rank * pairs, world_size * pairs)

    def __iter__(self) -> Iterator[list[int]]:
        for first in self._positions:
            yield [self._order.sample(position) for position in range(first, first + self._pairs)]
