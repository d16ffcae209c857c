"""The statistics that lie beside a shard."""

from __future__ import annotations

from data_tools.build.stats import NAMES
from pdfx.data.schema import ShardEntry
from pdfx.data.storage.base import Storage, StorageError
from pdfx.errors import UserError
from pdfx.host.reading import parse_json

_MOST_BYTES = 1 << 20


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
            f"The statistics {path} are no valid JSON ({error}); copy them again, or build the shard again."
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
