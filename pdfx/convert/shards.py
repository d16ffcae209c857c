"""Weights as one or several safetensors files with the names that transformers expects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from pdfx.convert.weights import Weight
from pdfx.host.files import FileRecord
from pdfx.host.tensor_files import write_tensors


def write_shards(directory: Path, weights: Sequence[Weight], largest: int) -> dict[str, FileRecord]:
    """Write all weights, each when its turn comes, in files of at most ``largest`` bytes of weights (more if a
    single weight is larger).

    Returns:
        What each file of weights is, by its name.
    """
    shards = plan_shards(weights, largest)
    if len(shards) == 1:
        return {SAFE_WEIGHTS_NAME: write_shard(directory / SAFE_WEIGHTS_NAME, shards[0])}
    stem, suffix = SAFE_WEIGHTS_NAME.split(".")
    names = [f"{stem}-{number:05d}-of-{len(shards):05d}.{suffix}" for number in range(1, len(shards) + 1)]
    records = {name: write_shard(directory / name, shard) for name, shard in zip(names, shards, strict=True)}
    totals = {
        "total_size": sum(weight.entry.bytes for weight in weights),
        "total_parameters": sum(weight.entry.elements for weight in weights),
    }
    places = {weight.entry.name: name for name, shard in zip(names, shards, strict=True) for weight in shard}
    index = json.dumps({"metadata": totals, "weight_map": dict(sorted(places.items()))}, indent=2)
    (directory / SAFE_WEIGHTS_INDEX_NAME).write_text(index + "\n", encoding="utf-8")
    return records


def plan_shards(weights: Sequence[Weight], largest: int) -> list[list[Weight]]:
    """The weights in order, in files that the next one would not fit into."""
    shards: list[list[Weight]] = [[]]
    size = 0
    for weight in weights:
        if shards[-1] and size + weight.entry.bytes > largest:
            shards.append([])
            size = 0
        shards[-1].append(weight)
        size += weight.entry.bytes
    return shards


def write_shard(path: Path, weights: Sequence[Weight]) -> FileRecord:
    return write_tensors(path, [(weight.entry, weight.pieces()) for weight in weights], {"format": "pt"})
