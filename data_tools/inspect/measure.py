"""What a description counts, in tallies that can be added up."""

from __future__ import annotations

import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from pdfx.data.samples import SampleError
from pdfx.data.schema import Record, Side, content_identity, identity_number
from pdfx.data.shard import Shard
from pdfx.host.system_errors import naming
from pdfx.model.pictures import ImageError, image_header

UNDETERMINED = "undetermined"
MINIMUM_BYTES = 24
"""Shorter texts, in UTF-8, are not judged: about four words of a European language, eight characters of Chinese."""
_MAXIMUM_CHARACTERS = 1000
_MINIMUM_CONFIDENCE = 0.5
SIDES = ("query", "target", "negatives")
MEASURES = ("text_characters", "text_words", "images_per_item", "image_width", "image_height", "image_kilobytes")
CONTENTS = ("queries", "targets", "pairs", "pictures")
"""What is compared by content: text and images' bytes of a side, or of both, and the bytes of single pictures."""
_Picture = tuple[bytes, str, tuple[int, int]]
"""Bytes, extension, and (width, height)."""


def language_of(text: str) -> str:
    """The ISO 639-1 code of a text's language, or ``UNDETERMINED`` if the text is too short to be judged or fits
    several languages."""
    text = " ".join(text[:_MAXIMUM_CHARACTERS].split())
    if len(text.encode()) < MINIMUM_BYTES:
        return UNDETERMINED
    language, _ = _identifier().classify(text)
    return UNDETERMINED if language == "und" else language


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    # It unpacks its model into a temporary file.
    with naming(tempfile.gettempdir()):
        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=_MINIMUM_CONFIDENCE)


@dataclass
class Tally:
    """Counts over samples.

    Attributes:
        counts: by (side, name, value). Of a side of ``SIDES``, the names are ``kinds``, ``formats``, ``languages`` and
            ``MEASURES``; of ``samples``, they are ``unusable``, ``without_query`` and ``negatives``.
        contents: one signed 64-bit number per sample, for each of ``CONTENTS`` and for ``target_ids``; per picture for
            ``pictures``.
    """

    counts: Counter[tuple[str, str, Any]] = field(default_factory=Counter)
    contents: dict[str, array] = field(default_factory=lambda: {name: array("q") for name in (*CONTENTS, "target_ids")})

    def add(self, other: Tally) -> None:
        self.counts.update(other.counts)
        for name, numbers in other.contents.items():
            self.contents[name] += numbers

    def of(self, side: str, name: str) -> Counter:
        """How often each value was counted."""
        return Counter({key[2]: count for key, count in self.counts.items() if key[:2] == (side, name)})

    def count(self, shard: Shard, row: int, with_language: bool) -> None:
        """Count a sample; one that cannot be read, or whose pictures have no sound header, is only counted as
        unusable."""
        try:
            _, record, members = shard.raw(row)
            pictures = {prefix: [_picture(members[name]) for name in side.images] for prefix, side in record.sides()}
        except (SampleError, ImageError, KeyError):
            self.counts["samples", "unusable", True] += 1
            return
        self.counts["samples", "without_query", record.query is None] += 1
        self.counts["samples", "negatives", len(record.negatives)] += 1
        self._count_contents(record, pictures)
        for prefix, side in record.sides():
            name = prefix.partition(".")[0]
            self.counts.update((name, *found) for found in _side_values(side, pictures[prefix]))
            if with_language and side.text:
                self.counts[name, "languages", language_of(side.text)] += 1

    def _count_contents(self, record: Record, pictures: dict[str, list[_Picture]]) -> None:
        identities = {
            prefix: content_identity(side.text, [data for data, _, _ in pictures[prefix]])
            for prefix, side in record.sides()
        }
        found = [("target_ids", record.target_id or ""), ("targets", identities["target"])]
        if record.query is not None:
            found += [("queries", identities["query"]), ("pairs", identities["query"] + identities["target"])]
        found += [("pictures", content_identity("", [data])) for side in pictures.values() for data, _, _ in side]
        for name, identity in found:
            self.contents[name].append(identity_number(identity))


def _side_values(side: Side, pictures: list[_Picture]) -> Iterator[tuple[str, Any]]:
    """(name, value) of what is counted of an item."""
    yield "kinds", "text_and_image" if side.text and side.images else "text_only" if side.text else "image_only"
    if side.text:
        yield "text_characters", len(side.text)
        yield "text_words", len(side.text.split())
    if pictures:
        yield "images_per_item", len(pictures)
    for data, extension, (width, height) in pictures:
        yield "formats", extension
        yield "image_width", width
        yield "image_height", height
        yield "image_kilobytes", -(-len(data) // 1000)


def distinct_and_sharing(numbers: array) -> dict[str, int]:
    """Of 64-bit numbers: how many ``distinct`` ones there are, and how many are ``sharing`` their value with another
    one."""
    _, counts = np.unique(np.frombuffer(numbers, dtype=np.int64), return_counts=True)
    return {"distinct": len(counts), "sharing": int(counts[counts > 1].sum())}


def quantiles(counts: Counter, percents: dict[str, int]) -> dict[str, int] | None:
    """By name, the smallest value that at least so many percent of what was counted do not exceed; None if nothing
    was counted."""
    if not counts:
        return None
    values = np.array(sorted(counts), dtype=np.int64)
    reached = np.cumsum([counts[int(value)] for value in values])
    return {
        name: int(values[np.searchsorted(reached, max(1, -(-counts.total() * percent // 100)))])
        for name, percent in percents.items()
    }


def _picture(data: bytes) -> _Picture:
    return data, *image_header(data)
