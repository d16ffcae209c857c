"""Finding keys and contents that were there before, in a few bytes of memory per sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_tools.build.pack import Packed, Rejected
from data_tools.build.shard_writer import sync_and_close, sync_directory
from pdfx.data.schema import identity_number
from pdfx.errors import UserError
from pdfx.host.reading import array_of, read_bounded

_RECENT = 1 << 16
_MOST_BYTES = 1 << 30


class FirstBearers:
    """Which number first bore a hash. Two of n different hashes' values are equal by chance with probability below n^2
    / 2^65.

    All but the latest lie in sorted arrays, each more than twice as long as the next: 16 bytes per hash, and a look-up
    searches in a few arrays.
    """

    def __init__(self):
        self._recent: dict[int, int] = {}
        self._sorted: list[np.ndarray] = []
        """int64 [n, 2]: hash and number, by hash."""

    def get(self, value: int) -> int | None:
        """The number that was added with this hash (a signed 64-bit number), or None."""
        if value in self._recent:
            return self._recent[value]
        for rows in self._sorted:
            place = int(np.searchsorted(rows[:, 0], np.int64(value)))
            if place < len(rows) and rows[place, 0] == value:
                return int(rows[place, 1])
        return None

    def add(self, value: int, number: int) -> None:
        """A hash that is not there yet."""
        self._recent[value] = number
        if len(self._recent) >= _RECENT:
            self.extend(np.array(list(self._recent.items()), dtype=np.int64))
            self._recent = {}

    def extend(self, rows: np.ndarray) -> None:
        """int64 [n, 2]: hashes that are not there yet, each with its number."""
        while self._sorted and len(self._sorted[-1]) <= 2 * len(rows):
            rows = np.concatenate([self._sorted.pop(), rows])
        # Columns lie apart in memory, so that a search reads hashes alone.
        self._sorted.append(np.asfortranarray(rows[np.argsort(rows[:, 0])]))


class EarlierSamples:
    """The keys, and where wished the contents, of the samples so far. Those of each finished shard are in a file of its
    own, for a build that goes on.

    Args:
        folder: where those files are.
    """

    def __init__(self, folder: Path, deduplicate: bool):
        self.folder = folder
        self._keys = FirstBearers()
        self._contents = FirstBearers() if deduplicate else None
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
        with self._path(shard).open("wb") as stream:
            np.save(stream, np.array(self._unsaved, dtype=np.int64))
            sync_and_close(stream)
        sync_directory(self.folder)
        self._unsaved = []

    def restore(self, shard: str) -> None:
        """Add what was saved of a finished shard.

        Raises:
            UserError: it cannot be read.
        """
        try:
            rows = array_of(read_bounded(self._path(shard), _MOST_BYTES))
            self._keys.extend(rows[:, [1, 0]])
            if self._contents is not None:
                self._contents.extend(rows[:, [2, 0]])
        except (OSError, ValueError, IndexError) as error:
            raise UserError(
                f"{self._path(shard)} cannot be read ({error}); start over with --overwrite (overwrite=True)."
            ) from None

    def _path(self, shard: str) -> Path:
        return self.folder / f"{shard.removesuffix('.tar')}.hashes.npy"
