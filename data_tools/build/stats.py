"""What the ``NNNNN_stats.json`` beside a shard counts. Every value is a sum over samples, so shards add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pdfx.data.schema import Record, ShardEntry
from pdfx.data.storage.base import Storage, StorageError
from pdfx.errors import UserError
from pdfx.host.reading import parse_json

_OF_SIDES = ("items", "texts", "characters", "images", "image_bytes", "pixels")
NAMES = (
    "samples",
    "targets_only",
    "images_reencoded",
    *(f"{side}_{name}" for side in ("query", "target", "negatives") for name in _OF_SIDES),
)
_MOST_BYTES = 1 << 20


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


def read_stats(storage: Storage, entry: ShardEntry) -> dict[str, int]:
    """What the shard's ``NNNNN_stats.json`` says: "bytes", and sums over samples by ``stats.NAMES``.

    Raises:
        UserError: it is missing or damaged, or counts other samples or bytes than the index does.
    """
    path = storage.where(entry.stats_name)
    try:
        stats = parse_json(storage.load(entry.stats_name, _MOST_BYTES))
    except StorageError as error:
        state = "are missing" if error.missing else f"cannot be read ({error})"
        raise UserError(f"The statistics {path} {state}; copy them again, or build the shard again.") from None
    except ValueError as error:
        raise UserError(
            f"The statistics {path} are not valid JSON ({error}); copy them again, or build the shard again."
        ) from None
    counts = {name: stats.get(name) for name in ("bytes", *NAMES)} if isinstance(stats, dict) else {}
    if not counts or not all(type(count) is int for count in counts.values()):
        raise UserError(
            f"The statistics {path} are damaged: they must hold whole numbers for {', '.join(('bytes', *NAMES))}; "
            "build the shard again."
        )
    if (counts["bytes"], counts["samples"]) != (entry.bytes, entry.samples):
        raise UserError(f"The statistics {path} do not fit the shard {entry.name}; copy both again, or build it again.")
    return counts
