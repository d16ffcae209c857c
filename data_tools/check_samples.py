"""Examining the samples of a part: every record and picture, and with a shard's first part its checksum and offsets."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pdfx.data.schema import identity_number
from pdfx.data.shards import SampleError, Shard
from pdfx.data.storage import Storage
from pdfx.model.pictures import ImageError, decode_image, image_header

from .check_tar import examine_tar
from .keys import key_number
from .parts import Part
from .stats import count_sample

Processor = Callable[[list[dict], list[str]], Any]
"""As ``pdfx.data.collate.Processor``, whose file would import torch into every check."""


@dataclass
class Findings:
    """What was found in a part.

    Attributes:
        problems: one sentence each.
        misplaced: the shard's offsets are not those of its samples, so that no sample of it can be judged.
        keys: ``key_number`` of each sample's key; empty where samples were not looked at.
        counts: what the samples without a problem add to the shard's statistics.
        target_ids: the identity of each target that could be read, as a signed 64-bit number.
        candidates: such numbers of all that samples name as candidates.
    """

    problems: list[str] = field(default_factory=list)
    misplaced: bool = False
    keys: array = field(default_factory=lambda: array("q"))
    counts: Counter[str] = field(default_factory=Counter)
    target_ids: array = field(default_factory=lambda: array("q"))
    candidates: set[int] = field(default_factory=set)


@dataclass
class Examiner:
    """Examines one part; travels to worker processes. A shard's first part also stands for the file as a whole."""

    storage: Storage
    shards: list[Shard]
    processor: Processor | None = None

    def __call__(self, part: Part) -> Findings:
        shard, findings = self.shards[part.shard], Findings()
        if part.start == 0:
            findings.problems, fits = examine_tar(self.storage, shard)
            findings.misplaced = not fits
        if not findings.misplaced:
            for row in range(part.start, part.stop):
                findings.problems += _examine_sample(shard, row, findings, self.processor)
        shard.close()
        return findings


def _examine_sample(shard: Shard, row: int, findings: Findings, processor: Processor | None) -> Iterator[str]:
    place = shard.place(row)
    try:
        key, record, members = shard.raw(row)
    except SampleError as error:
        findings.keys.append(key_number(error.key))
        yield str(error)
        return
    findings.keys.append(key_number(key))
    findings.target_ids.append(identity_number(record.target_id))
    if record.candidates is not None:
        findings.candidates.update(map(identity_number, record.candidates))
        if record.target_id not in record.candidates:
            yield str(place.error(key, "its candidates lack its own target, which could never be found"))
    pictures: dict[str, tuple[int, tuple[int, int]]] = {}
    decoded = {}
    names = [name for _, side in record.sides() for name in side.images]
    for name in names:
        try:
            decoded[name] = decode_image(members[name], shard.max_image_pixels)
            pictures[name] = len(members[name]), image_header(members[name], shard.max_image_pixels)[1]
        except KeyError:
            yield str(place.error(key, f"the image '{name}' is missing"))
        except ImageError as error:
            yield str(place.error(key, f"the image '{name}' cannot be used: {error}"))
    if len(pictures) == len(names):
        findings.counts.update(count_sample(record, pictures))
    for name, side in record.sides() if processor else ():
        if all(image in decoded for image in side.images) and (reason := _refusal(processor, name, side.text, [decoded[image] for image in side.images])):
            yield str(place.error(key, f"of its {name}, {reason}"))


def _refusal(processor: Processor, side: str, text: str, images: list) -> str | None:
    """Why the processor does not take an item; None if it does."""
    from pdfx.data.collate import refusal

    try:
        processor([{"text": text, "images": images}], ["query" if side == "query" else "target"])
    except Exception as error:  # as in training, see refusal
        return refusal(error)
    return None
