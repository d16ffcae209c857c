"""What the loader hands to the trainer. Shapes: B pairs on this rank, M hard negatives per pair, n items of a chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass
class Chunk:
    """What one forward pass embeds."""

    inputs: dict[str, Tensor]
    """The processor's output for n items."""
    slots: Tensor
    """int64 [n], where each item's embedding goes: query b at b, target b at B + b, negative m of pair b at 2B + b*M +
    m."""

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
    """One rank's share of one optimiser step. All ranks have the same B and M at every step; the number of chunks may
    differ."""

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
    """bool [B]; False where a filler stands for a corrupt sample. It counts nowhere."""
    negative_valid: Tensor
    """bool [B, M]; False where a filler stands for a hard negative that the sample does not have."""
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
        """Page-locked copies, from which copies to a GPU can overlap with work; torch's DataLoader calls this where it
        is asked to pin."""
        return self.map(lambda tensor: tensor.pin_memory())
