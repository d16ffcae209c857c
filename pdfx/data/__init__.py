"""From shards to batches: samples, their canonical order, decoding and collation.

A name's file is imported when the name is first asked for: what only reads or writes shards then does without torch
(0.3 s instead of 4 s to start a process).
"""

from importlib import import_module
from typing import Any

_FILES = {
    "Batch": "batch",
    "Candidates": "retrieval",
    "CanonicalOrder": "order",
    "Chunk": "batch",
    "CorruptSampleGuard": "corrupt_samples",
    "FILLER": "retrieval",
    "Items": "retrieval",
    "Problem": "batch",
    "RetrievalItems": "retrieval",
    "Sample": "shards",
    "SampleError": "shards",
    "ShardedDataset": "shards",
    "TrainLoader": "loader",
    "check_share": "corrupt_samples",
    "iterate_inputs": "retrieval",
    "left_after": "retrieval",
    "retrieval_items": "retrieval",
    "share_of_rank": "retrieval",
}

__all__ = list(_FILES)


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_FILES[name]}", __name__), name)
