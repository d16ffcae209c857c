"""Finding 64-bit numbers of identities (``schema.identity_number``) among many, in 8 to 16 bytes of memory each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from pdfx.data.schema import identity_number

_RECENT = 1 << 16
UNKNOWN = 0


class NumberTable:
    """What each number stands for: ``numbers`` int64 [n] and ``values`` int64 [n], by default the numbers' places.

    Both are sorted by number; values of equal numbers keep their order.
    """

    def __init__(self, numbers: np.ndarray, values: np.ndarray | None = None):
        order = np.argsort(numbers, kind="stable")
        self.numbers = numbers[order]
        self.values = order if values is None else values[order]

    def __len__(self) -> int:
        return len(self.numbers)

    def bounds(self, numbers: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the values of each number begin, and where they end."""
        wanted = np.asarray(numbers, dtype=np.int64)
        return np.searchsorted(self.numbers, wanted, "left"), np.searchsorted(self.numbers, wanted, "right")

    def find(self, number: int) -> np.ndarray:
        """The values of a number, in their order."""
        start, stop = self.bounds(number)
        return self.values[start:stop]

    def repeated(self) -> np.ndarray:
        """The values of all numbers that are there more than once, ascending; ``UNKNOWN`` is not looked at."""
        equal = np.flatnonzero((self.numbers[1:] == self.numbers[:-1]) & (self.numbers[1:] != UNKNOWN))
        return np.unique(self.values[np.concatenate([equal, equal + 1])])


class FirstRecords:
    """Which record first had a number, in 16 bytes per number.

    All but the latest lie in tables, each more than twice as long as the next, so that a look-up searches in a few.
    """

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}
        self._tables: list[NumberTable] = []

    def get(self, number: int) -> int | None:
        """The record that was added with this number, or None."""
        if number in self._recent:
            return self._recent[number]
        return next((int(found[0]) for table in self._tables if len(found := table.find(number))), None)

    def add(self, number: int, record: int) -> None:
        """A number that is not there yet."""
        self._recent[number] = record
        if len(self._recent) >= _RECENT:
            self.extend(*np.array(list(self._recent.items()), dtype=np.int64).T)
            self._recent = {}

    def extend(self, numbers: np.ndarray, records: np.ndarray) -> None:
        """int64 [n] each: numbers that are not there yet, and their records."""
        while self._tables and len(self._tables[-1]) <= 2 * len(numbers):
            table = self._tables.pop()
            numbers, records = np.concatenate([table.numbers, numbers]), np.concatenate([table.values, records])
        self._tables.append(NumberTable(numbers, records))


def key_number(key: str) -> int:
    """A key as a number; ``UNKNOWN`` for the empty key of a sample whose damage hides it."""
    return identity_number(key) if key else UNKNOWN


def repeated_keys(numbers: np.ndarray, key_of: Callable[[int], str]) -> Iterator[tuple[str, int, int]]:
    """(key, the first sample that has it, another one that does) for each sample whose key an earlier sample has.

    Args:
        numbers: int64 [samples], ``key_number`` of each sample's key.
        key_of: the key of a sample; asked for samples with equal numbers, which may merely collide.
    """
    first_of: dict[str, int] = {}
    for sample in NumberTable(numbers).repeated().tolist():
        key = key_of(sample)
        if key in first_of:
            yield key, first_of[key], sample
        else:
            first_of[key] = sample
