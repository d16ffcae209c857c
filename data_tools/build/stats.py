"""What the ``NNNNN_stats.json`` of a shard counts. Every value is a sum over samples, so those of several shards add
up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pdfx.data.schema import Record

_OF_SIDES = ("items", "texts", "characters", "images", "image_bytes", "pixels")
NAMES = (
    "samples",
    "targets_only",
    "images_reencoded",
    *(f"{side}_{name}" for side in ("query", "target", "negatives") for name in _OF_SIDES),
)


def count_sample(record: Record, pictures: Mapping[str, tuple[int, tuple[int, int]]]) -> Counter[str]:
    """The counts of one sample.

    Args:
        pictures: bytes and (width, height) of each image, by the name that the record gives it.
    """
    counts = Counter(samples=1, targets_only=int(record.query is None))
    for prefix, side in record.sides():
        name = prefix.partition(".")[0]
        counts[f"{name}_items"] += 1
        counts[f"{name}_texts"] += bool(side.text)
        counts[f"{name}_characters"] += len(side.text)
        for image in side.images:
            size, (width, height) = pictures[image]
            counts[f"{name}_images"] += 1
            counts[f"{name}_image_bytes"] += size
            counts[f"{name}_pixels"] += width * height
    return counts
