"""From shards to batches: samples, their canonical order, decoding and collation."""

from .batch import Batch, Chunk
from .collate import collate
from .guard import CorruptSampleGuard
from .images import ImageError, decode_image
from .loader import TrainLoader
from .order import CanonicalOrder
from .retrieval import FILLER, Items, RetrievalItems, iterate_inputs, retrieval_items, share_of_rank
from .shards import Sample, SampleError, ShardedDataset

__all__ = [
    "FILLER",
    "Batch",
    "CanonicalOrder",
    "Chunk",
    "CorruptSampleGuard",
    "ImageError",
    "Items",
    "RetrievalItems",
    "Sample",
    "SampleError",
    "ShardedDataset",
    "TrainLoader",
    "collate",
    "decode_image",
    "iterate_inputs",
    "retrieval_items",
    "share_of_rank",
]
