"""From shards to batches: samples, their canonical order, decoding and collation.

A name's file is imported when the name is first asked for: what only reads or writes shards then does without torch
(0.3 s instead of 4 s to start a process).
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "batch": "Batch Chunk Problem",
    "corrupt_samples": "CorruptSampleGuard check_share",
    "loader": "TrainLoader",
    "order": "CanonicalOrder",
    "retrieval": "Candidates FILLER Items RetrievalItems iterate_inputs left_after retrieval_items share_of_rank",
    "samples": "Sample SampleError",
    "shards": "ShardedDataset",
}
_FILES = {name: file for file, names in _NAMES.items() for name in names.split()}

__all__ = list(_FILES)


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_FILES[name]}", __name__), name)
