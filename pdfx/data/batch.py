"""Batches, which the loader hands to the trainer, and how samples become one. Shapes: B pairs on this rank, M hard
negatives per pair, n items of a chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from pdfx.data.shards import Sample, SampleError


@dataclass
class Chunk:
    """What one forward pass embeds."""

    inputs: dict[str, Tensor]
    """The processor's output for n items."""
    slots: Tensor
    """int64 [n], where each embedding goes: query b at b, target b at B + b, negative m of pair b at 2B + b*M + m."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Chunk:
        inputs = {name: function(value) if isinstance(value, Tensor) else value for name, value in self.inputs.items()}
        return Chunk(inputs=inputs, slots=function(self.slots))


@dataclass(frozen=True)
class Problem:
    """A sample that could not be used."""

    sentence: str
    kind: str
    """One of ``samples.KINDS``."""
    data_set: int = 0
    """Number of the data set it belongs to."""


@dataclass
class Batch:
    """One rank's share of an optimiser step. B and M are the same on all ranks; the number of chunks may differ."""

    chunks: list[Chunk]
    pairs: int
    """B"""
    negatives: int
    """M"""
    target_ids: Tensor
    """int64 [B], hash of the target's identity."""
    negative_ids: Tensor
    """int64 [B, M]"""
    valid: Tensor
    """bool [B]; False if a filler stands for a corrupt sample. It counts nowhere."""
    negative_valid: Tensor
    """bool [B, M]; False if a filler stands for a hard negative that the sample does not have."""
    keys: list[str] = field(default_factory=list)
    """[B], for messages; empty strings at fillers whose key could not be read."""
    problems: list[Problem] = field(default_factory=list)
    """The samples that could not be used."""
    truncated: int = 0
    """Texts that were cut."""
    oversized: int = 0
    """Items that alone hold more tokens than a chunk should."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            chunks=[chunk.map(function) for chunk in self.chunks],
            target_ids=function(self.target_ids),
            negative_ids=function(self.negative_ids),
            valid=function(self.valid),
            negative_valid=function(self.negative_valid),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Page-locked copies, which can be copied to a GPU while it works; torch's DataLoader calls this to pin."""
        return self.map(lambda tensor: tensor.pin_memory())


class Processor(Protocol):
    """What ``pdfx.model.InputProcessor`` does."""

    def __call__(self, items: list[dict], sides: list[str], /) -> tuple[dict[str, Tensor], int]:
        """Inputs and the number of texts that were cut, of items ``{"text": str, "images": [PIL.Image, ...]}``, each a
        "query" or a "target"."""

    def select_items(self, inputs: dict[str, Tensor], rows: list[int], images: list[int], /) -> dict[str, Tensor]:
        """The inputs of some of the items; ``images``: how many each item has. Only called to cut chunks by tokens."""


def filler() -> dict:
    """The item that stands in if there is nothing to embed."""
    return {"text": "", "images": []}


def collate(samples: list[Sample | SampleError], processor: Processor, chunk_pairs: int, negatives: int) -> Batch:
    """One Batch of ``len(samples)`` pairs in chunks of ``chunk_pairs``.

    A chunk holds its pairs' queries, then their targets, then their negatives, through one call of the processor. Of
    each sample the first ``negatives`` hard negatives are used. A SampleError in a sample's place, or a sample that the
    processor refuses, becomes a masked filler with its sentence in ``problems``.

    Raises:
        ValueError: the pairs do not divide into chunks.
        Exception: what the processor raises if no single sample is to blame.
    """
    pairs = len(samples)
    if pairs == 0 or pairs % chunk_pairs:
        raise ValueError(f"{pairs} pairs do not divide into chunks of {chunk_pairs}")
    usable = list(samples)
    chunks, truncated = [], 0
    for start in range(0, pairs, chunk_pairs):
        part, inputs, cut = _process(usable[start : start + chunk_pairs], processor, negatives)
        usable[start : start + chunk_pairs] = part
        chunks.append(Chunk(inputs=inputs, slots=_slots(start, chunk_pairs, pairs, negatives)))
        truncated += cut
    return _assemble(usable, chunks, truncated, negatives)


def collate_by_tokens(
    samples: list[Sample | SampleError], processor: Processor, chunk_tokens: int, negatives: int
) -> Batch:
    """One Batch of ``len(samples)`` pairs in chunks of at most ``chunk_tokens`` tokens without padding, whatever pair
    an item belongs to.

    Items are ordered by length, longest first, so that a chunk's items are about equally long and the largest chunks
    come first on every rank. An item of more tokens is a chunk of its own, counted in ``oversized``.
    """
    usable, inputs, truncated = _process(samples, processor, negatives)
    images = [len(item["images"]) for item in _items(usable, negatives)[0]]
    slots = _slots(0, len(samples), len(samples), negatives)
    lengths = inputs["attention_mask"].sum(1).tolist()
    chunks = [
        Chunk(processor.select_items(inputs, group, images), slots[group])
        for group in cut_by_tokens(lengths, chunk_tokens)
    ]
    batch = _assemble(usable, chunks, truncated, negatives)
    batch.oversized = sum(length > chunk_tokens for length in lengths)
    return batch


def cut_by_tokens(lengths: list[int], limit: int) -> list[list[int]]:
    """Numbers of the items of each chunk, longest items first: as many as fit ``limit`` tokens, and at least one."""
    groups: list[list[int]] = []
    free = 0
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        if not groups or lengths[item] > free:
            groups.append([])
            free = limit
        groups[-1].append(item)
        free -= lengths[item]
    return groups


def process_usable(
    parts: list[Any], process: Callable[[list[Any]], Any], blame: Callable[[Any, str], SampleError]
) -> tuple[list[Any], Any]:
    """``parts``, with an error in the place of each that the processor refuses, and what ``process`` makes of them all.

    ``blame`` makes the error of a part from the words for the reason. Raises what ``process`` raises if no single part
    is to blame.
    """
    try:
        return parts, process(parts)
    except Exception:
        tried = [part if isinstance(part, SampleError) else _try_alone(part, process, blame) for part in parts]
        if all(after is before for after, before in zip(tried, parts, strict=True)):
            raise
        return tried, process(tried)


def _try_alone(part: Any, process: Callable[[list[Any]], Any], blame: Callable[[Any, str], SampleError]) -> Any:
    try:
        process([part])
    except Exception as error:
        return blame(part, refusal(error))
    return part


def refusal(error: Exception) -> str:
    """What a processor raised, in words; it is not ours, so what it raises on odd pictures or texts is open."""
    return f"the processor refuses it ({' '.join(str(error).split())[:300] or type(error).__name__})"


def _process(
    part: list[Sample | SampleError], processor: Processor, negatives: int
) -> tuple[list[Sample | SampleError], dict[str, Tensor], int]:
    """The processor's output for these samples; those that it refuses come back as errors."""

    def blame(sample: Sample, reason: str) -> SampleError:
        return SampleError(
            f"In shard {sample.shard}, sample '{sample.key}' cannot be used: {reason}.", sample.key, "processor"
        )

    usable, (inputs, truncated) = process_usable(part, lambda samples: processor(*_items(samples, negatives)), blame)
    return usable, inputs, truncated


def _items(part: list[Sample | SampleError], negatives: int) -> tuple[list[dict], list[str]]:
    queries = [filler() if isinstance(sample, SampleError) else sample.query or filler() for sample in part]
    targets = [filler() if isinstance(sample, SampleError) else sample.target for sample in part]
    hard: list[dict[str, Any]] = []
    for sample in part:
        own = [] if isinstance(sample, SampleError) else sample.negatives[:negatives]
        hard += [*own, *(filler() for _ in range(negatives - len(own)))]
    return [*queries, *targets, *hard], ["query"] * len(queries) + ["target"] * (len(targets) + len(hard))


def _slots(start: int, count: int, pairs: int, negatives: int) -> Tensor:
    b = torch.arange(start, start + count)
    return torch.cat([b, pairs + b, (2 * pairs + b[:, None] * negatives + torch.arange(negatives)).reshape(-1)])


def _assemble(samples: list[Sample | SampleError], chunks: list[Chunk], truncated: int, negatives: int) -> Batch:
    pairs = len(samples)
    batch = Batch(
        chunks=chunks,
        pairs=pairs,
        negatives=negatives,
        target_ids=torch.zeros(pairs, dtype=torch.int64),
        negative_ids=torch.zeros(pairs, negatives, dtype=torch.int64),
        valid=torch.zeros(pairs, dtype=torch.bool),
        negative_valid=torch.zeros(pairs, negatives, dtype=torch.bool),
        keys=[sample.key for sample in samples],
        problems=[Problem(str(sample), sample.kind) for sample in samples if isinstance(sample, SampleError)],
        truncated=truncated,
    )
    for b, sample in enumerate(samples):
        if isinstance(sample, SampleError):
            continue
        own = sample.negative_ids[:negatives]
        batch.valid[b] = True
        batch.target_ids[b] = sample.target_id
        batch.negative_ids[b, : len(own)] = torch.tensor(own, dtype=torch.int64)
        batch.negative_valid[b, : len(own)] = True
    return batch
