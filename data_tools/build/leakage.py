"""Comparing records with evaluation sets: what was trained on should not be measured."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_tools.build.pack import Packed
from pdfx.data.numbers import NumberTable
from pdfx.data.schema import Record, content_identity, identity_number
from pdfx.data.shards import SampleError, ShardedDataset
from pdfx.errors import UserError

LEAKAGE_NAME = "leakage.jsonl"


class EvaluationSet:
    """The contents of a directory of shards, as hashes: 16 bytes per query, target and picture.

    Args:
        kinds: which of ``settings.LEAKS``.
        progress: called with (samples read, samples in all).

    Raises:
        UserError: it is no complete directory of shards, or a sample is damaged.
    """

    def __init__(self, path: str | Path, kinds: tuple[str, ...], progress: Callable[[int, int], None] | None = None):
        self._dataset = ShardedDataset(path)
        self.path = self._dataset.path
        found = {kind: (array("q"), array("q")) for kind in kinds}
        for sample, (record, members) in enumerate(self._samples()):
            for kind, number in _parts(record, members):
                if kind in found:
                    found[kind][0].append(number)
                    found[kind][1].append(sample)
            if progress:
                progress(sample + 1, len(self._dataset))
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

    def _samples(self) -> Iterator[tuple[Record, dict[str, bytes]]]:
        try:
            for shard in self._dataset.shards:
                for row in range(shard.entry.samples):
                    yield shard.raw(row)[1:]
                shard.close()
        except SampleError as error:
            raise UserError(f"The evaluation set {self.path} cannot be compared with: {error}") from None


def _parts(record: Record, members: dict[str, bytes]) -> Iterator[tuple[str, int]]:
    for prefix, side in record.sides():
        pictures = [members[name] for name in side.images]
        if prefix in ("query", "target"):
            yield prefix, identity_number(content_identity(side.text, pictures))
        for data in pictures:
            yield "image", identity_number(content_identity("", [data]))
