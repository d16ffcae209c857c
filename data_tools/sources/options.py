"""Options of formats, which are given as text, and what their values may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """One option of a format.

    Attributes:
        help: what it says.
        parse: from its text to the argument of the importer. Raises ValueError with the part of a sentence that says what it must be.
    """

    help: str
    parse: Callable[[str], Any] = str


def one_of(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"it must be {', '.join(values[:-1])} or {values[-1]}")
        return text

    return parse


def yes_or_no(text: str) -> bool:
    return one_of("yes", "no")(text) == "yes"


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("it must be a number")
    return value


def whole_number(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isascii() or not text.isdigit():
        raise ValueError("it must be a whole number, 0 or more")
    return int(text)
