"""Finding keys that stand more than once, with eight bytes of memory per sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from pdfx.data.schema import identity_number

UNKNOWN = 0


def key_number(key: str) -> int:
    """A key as a signed 64-bit number; ``UNKNOWN`` for the empty key of a sample whose damage hides it."""
    return identity_number(key) if key else UNKNOWN


def repeated_keys(numbers: np.ndarray, key_of: Callable[[int], str]) -> Iterator[tuple[str, int, int]]:
    """(key, first sample that bears it, another one that does) for each sample whose key an earlier sample has.

    Args:
        numbers: int64 [samples], ``key_number`` of each sample's key.
        key_of: the key of a sample. Only samples whose numbers are equal are asked for, so keys that merely collide are
            told apart.
    """
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    equal = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != UNKNOWN))
    first_of: dict[str, int] = {}
    for sample in np.unique(order[np.concatenate([equal, equal + 1])]).tolist():
        key = key_of(sample)
        if key in first_of:
            yield key, first_of[key], sample
        else:
            first_of[key] = sample
