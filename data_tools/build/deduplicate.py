"""Finding what was there before, in a build or in an evaluation set: what was trained on should not be measured."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_tools.build.pack import Packed, Rejected
from pdfx.data.numbers import FirstRecords, NumberTable
from pdfx.data.schema import Record, content_identity, identity_number
from pdfx.data.shards import SampleError, ShardedDataset
from pdfx.errors import UserError
from pdfx.host.files import checksummed, sync
from pdfx.host.reading import array_of, read_bounded

_MOST_BYTES = 1 << 30
LEAKAGE_NAME = "leakage.jsonl"


class EarlierSamples:
    """The keys, and if wished the contents, of the samples so far. Those of each finished shard are in a file of its
    own, for a build that resumes.

    Args:
        folder: where those files are.
    """

    def __init__(self, folder: Path, deduplicate: bool):
        self.folder = folder
        self._keys = FirstRecords()
        self._contents = FirstRecords() if deduplicate else None
        self._unsaved: list[tuple[int, int, int]] = []

    def find(self, packed: Packed) -> Rejected | None:
        """Why a sample cannot join those so far; None if it can."""
        # Contents first: a whole record that is there twice is a duplicate, and not a mistake in its key.
        earlier = self._contents.get(packed.content) if self._contents is not None else None
        if earlier is not None:
            return Rejected("duplicate", f"its query and target are those of record number {earlier + 1}")
        earlier = self._keys.get(identity_number(packed.key))
        if earlier is not None:
            return Rejected(
                "repeated key",
                f"its key '{packed.key}' is already that of record number {earlier + 1}; keys must be unique",
            )
        return None

    def add(self, number: int, packed: Packed) -> None:
        row = number, identity_number(packed.key), packed.content
        self._keys.add(row[1], number)
        if self._contents is not None:
            self._contents.add(row[2], number)
        self._unsaved.append(row)

    def save(self, shard: str) -> None:
        """Put what was added since the last time on the disk, as that of a shard."""
        with checksummed(self._path(shard)) as stream:
            np.save(stream, np.array(self._unsaved, dtype=np.int64))
        sync(self.folder)
        self._unsaved = []

    def restore(self, shard: str) -> None:
        """Add what was saved of a finished shard.

        Raises:
            UserError: it cannot be read.
        """
        try:
            rows = array_of(read_bounded(self._path(shard), _MOST_BYTES))
            self._keys.extend(rows[:, 1], rows[:, 0])
            if self._contents is not None:
                self._contents.extend(rows[:, 2], rows[:, 0])
        except (OSError, ValueError, IndexError) as error:
            raise UserError(
                f"{self._path(shard)} cannot be read ({error}); start over with --overwrite (overwrite=True)."
            ) from None

    def _path(self, shard: str) -> Path:
        return self.folder / f"{shard.removesuffix('.tar')}.hashes.npy"


class EvaluationSet:
    """The contents of a directory of shards, as hashes: 16 bytes per query, target and picture.

    Args:
        kinds: which of ``settings.LEAKS``.
        progress: called with (samples read, samples in all).

    Raises:
        UserError: it is not a complete directory of shards, or a sample is damaged.
    """

    def __init__(self, path: str | Path, kinds: tuple[str, ...], progress: Callable[[int, int], None] | None = None):
        self._dataset = ShardedDataset(path)
        self.path = self._dataset.path
        found = {kind: (array("q"), array("q")) for kind in kinds}
        try:
            for sample, (_, record, members) in enumerate(self._dataset.samples()):
                for kind, number in _parts(record, members):
                    if kind in found:
                        found[kind][0].append(number)
                        found[kind][1].append(sample)
                if progress:
                    progress(sample + 1, len(self._dataset))
        except SampleError as error:
            raise UserError(f"The evaluation set {self.path} cannot be compared with: {error}") from None
        self._tables = {kind: NumberTable(*map(np.array, columns)) for kind, columns in found.items()}

    @property
    def fingerprint(self) -> str:
        return self._dataset.fingerprint

    def find(self, packed: Packed) -> Iterator[dict]:
        """What a record shares with this set: of each kind the first sample that has it."""
        for kind, table in self._tables.items():
            samples = [int(found[0]) for number in packed.parts[kind] if len(found := table.find(number))]
            if samples:
                key, _ = next(iter(self._dataset.records(samples[:1])))
                yield {"shares": kind, "evaluation": str(self.path), "key": key}


def _parts(record: Record, members: dict[str, bytes]) -> Iterator[tuple[str, int]]:
    for prefix, side in record.sides():
        pictures = [members[name] for name in side.images]
        if prefix in ("query", "target"):
            yield prefix, identity_number(content_identity(side.text, pictures))
        for data in pictures:
            yield "image", identity_number(content_identity("", [data]))
