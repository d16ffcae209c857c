"""Describing what a directory of shards holds."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from rich.table import Table

from pdfx.data.images import ImageError, image_header
from pdfx.data.schema import Record
from pdfx.data.shards import SampleError, ShardedDataset

from .build import Progress

SIDES = ("query", "target", "negatives")
_QUANTILES = {"minimum": 0.0, "median": 0.5, "p95": 0.95, "maximum": 1.0}


def describe_shards(path: str | Path, progress: Progress | None = None) -> dict:
    """Counts and distributions, as plain values.

    Returns:
        ``shards``, ``samples``, ``bytes``, ``fingerprint``, ``unusable`` (samples that could not be read), ``targets`` (distinct target_ids),
        ``samples_sharing_target`` (samples whose target_id another sample bears too), and ``sides``: for each of query, target and negatives
        ``items``, ``text_only``, ``image_only``, ``text_and_image``, and the quantiles of ``text_characters`` and ``text_words`` (over items
        with text), ``images_per_item`` (over items with images), ``image_width`` and ``image_height`` in pixels as stored; null where there are none.

    Raises:
        UserError: the directory is no complete directory of shards.
    """
    dataset = ShardedDataset(path)
    lengths: dict[str, dict[str, list[int]]] = {side: defaultdict(list) for side in SIDES}
    kinds: dict[str, Counter] = {side: Counter() for side in SIDES}
    target_ids: Counter[str] = Counter()
    unusable = done = 0
    for shard in dataset.shards:
        for row in range(shard.entry.samples):
            try:
                _, record, members = shard.raw(row)
                _measure(record, members, lengths, kinds)
                target_ids[record.target_id] += 1
            except (SampleError, ImageError, KeyError):
                unusable += 1
            done += 1
            if progress:
                progress(done, len(dataset))
        shard.close()
    return {
        "shards": len(dataset.shards),
        "samples": len(dataset),
        "bytes": sum(entry.bytes for entry in dataset.index.shards),
        "fingerprint": dataset.fingerprint,
        "unusable": unusable,
        "targets": len(target_ids),
        "samples_sharing_target": sum(count for count in target_ids.values() if count > 1),
        "sides": {side: _side_summary(lengths[side], kinds[side]) for side in SIDES},
    }


def description_tables(description: dict) -> list[Table]:
    """What ``describe_shards`` gave, for a console."""
    overview = Table(title="Shards", show_header=False)
    for name in ("shards", "samples", "bytes", "unusable", "targets", "samples_sharing_target", "fingerprint"):
        value = description[name]
        overview.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else value)
    tables = [overview]
    for side, summary in description["sides"].items():
        if not summary["items"]:
            continue
        title = f"{side}: {summary['items']:,} items ({summary['text_only']:,} text, {summary['image_only']:,} image, {summary['text_and_image']:,} both)"
        table = Table("", *_QUANTILES, title=title)
        for name, quantiles in summary.items():
            if isinstance(quantiles, dict):
                table.add_row(name.replace("_", " "), *(f"{value:,.0f}" for value in quantiles.values()))
        tables.append(table)
    return tables


def _measure(record: Record, members: dict[str, bytes], lengths: dict[str, dict[str, list[int]]], kinds: dict[str, Counter]) -> None:
    # Sizes first: a damaged image then leaves nothing of its sample in the counts.
    sizes = {name: image_header(members[name])[1] for _, side in record.sides() for name in side.images}
    for prefix, side in record.sides():
        name = prefix.partition(".")[0]
        kinds[name]["text_and_image" if side.text and side.images else "text_only" if side.text else "image_only"] += 1
        if side.text:
            lengths[name]["text_characters"].append(len(side.text))
            lengths[name]["text_words"].append(len(side.text.split()))
        if side.images:
            lengths[name]["images_per_item"].append(len(side.images))
        for image in side.images:
            lengths[name]["image_width"].append(sizes[image][0])
            lengths[name]["image_height"].append(sizes[image][1])


def _side_summary(lengths: dict[str, list[int]], kinds: Counter) -> dict:
    measures = ("text_characters", "text_words", "images_per_item", "image_width", "image_height")
    counts = {kind: kinds[kind] for kind in ("text_only", "image_only", "text_and_image")}
    return {"items": kinds.total(), **counts, **{name: _quantiles(lengths[name]) for name in measures}}


def _quantiles(values: list[int]) -> dict[str, float] | None:
    return {name: float(np.quantile(values, q, method="inverted_cdf")) for name, q in _QUANTILES.items()} if values else None
