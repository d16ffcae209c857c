"""Finding keys and contents that were there before, in a few bytes of memory per sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_tools.build.pack import Packed, Rejected
from pdfx.data.numbers import FirstRecords
from pdfx.data.schema import identity_number
from pdfx.errors import UserError
from pdfx.host.files import checksummed, sync
from pdfx.host.reading import array_of, read_bounded

_MOST_BYTES = 1 << 30


class EarlierSamples:
    """The keys, and where wished the contents, of the samples so far. Those of each finished shard are in a file of its
    own, for a build that goes on.

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
