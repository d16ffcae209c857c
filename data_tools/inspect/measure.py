"""What a description counts, in tallies that can be added up."""

from __future__ import annotations

import tempfile
from array import array
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

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
class SideTally:
    """Counts over the items of one side: by kind, by value of each of ``MEASURES``, by pictures' format, and by
    language of the texts looked at."""

    kinds: Counter = field(default_factory=Counter)
    measures: dict[str, Counter] = field(default_factory=lambda: {name: Counter() for name in MEASURES})
    formats: Counter = field(default_factory=Counter)
    languages: Counter = field(default_factory=Counter)

    def add(self, other: SideTally) -> None:
        self.kinds.update(other.kinds)
        self.formats.update(other.formats)
        self.languages.update(other.languages)
        for name, counts in other.measures.items():
            self.measures[name].update(counts)

    def count(self, side: Side, pictures: list[tuple[bytes, str, tuple[int, int]]]) -> None:
        """``pictures``: bytes, extension, and (width, height) of each of the side's images."""
        self.kinds["text_and_image" if side.text and side.images else "text_only" if side.text else "image_only"] += 1
        if side.text:
            self.measures["text_characters"][len(side.text)] += 1
            self.measures["text_words"][len(side.text.split())] += 1
        if pictures:
            self.measures["images_per_item"][len(pictures)] += 1
        for data, extension, (width, height) in pictures:
            self.formats[extension] += 1
            self.measures["image_width"][width] += 1
            self.measures["image_height"][height] += 1
            self.measures["image_kilobytes"][-(-len(data) // 1000)] += 1


@dataclass
class Tally:
    """Counts over samples. ``contents`` and ``target_ids`` hold one signed 64-bit number per sample, per picture for
    "pictures"."""

    unusable: int = 0
    without_query: int = 0
    sides: dict[str, SideTally] = field(default_factory=lambda: {side: SideTally() for side in SIDES})
    negatives: Counter = field(default_factory=Counter)
    contents: dict[str, array] = field(default_factory=lambda: {name: array("q") for name in CONTENTS})
    target_ids: array = field(default_factory=lambda: array("q"))

    def add(self, other: Tally) -> None:
        self.unusable += other.unusable
        self.without_query += other.without_query
        self.negatives.update(other.negatives)
        self.target_ids += other.target_ids
        for name in CONTENTS:
            self.contents[name] += other.contents[name]
        for name, side in other.sides.items():
            self.sides[name].add(side)

    def count(self, shard: Shard, row: int, with_language: bool) -> None:
        """Count a sample; one that cannot be read, or whose pictures have no sound header, is only counted as
        unusable."""
        try:
            _, record, members = shard.raw(row)
            pictures = {prefix: [_picture(members[name]) for name in side.images] for prefix, side in record.sides()}
        except (SampleError, ImageError, KeyError):
            self.unusable += 1
            return
        self.without_query += record.query is None
        self.negatives[len(record.negatives)] += 1
        self.target_ids.append(identity_number(record.target_id or ""))
        self._count_contents(record, pictures)
        for prefix, side in record.sides():
            tally = self.sides[prefix.partition(".")[0]]
            tally.count(side, pictures[prefix])
            if with_language and side.text:
                tally.languages[language_of(side.text)] += 1

    def _count_contents(self, record: Record, pictures: dict[str, list[tuple[bytes, str, tuple[int, int]]]]) -> None:
        identities = {
            prefix: content_identity(side.text, [data for data, _, _ in pictures[prefix]])
            for prefix, side in record.sides()
        }
        self.contents["targets"].append(identity_number(identities["target"]))
        if record.query is not None:
            self.contents["queries"].append(identity_number(identities["query"]))
            self.contents["pairs"].append(identity_number(identities["query"] + identities["target"]))
        for of_side in pictures.values():
            for data, _, _ in of_side:
                self.contents["pictures"].append(identity_number(content_identity("", [data])))


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


def _picture(data: bytes) -> tuple[bytes, str, tuple[int, int]]:
    return data, *image_header(data)
