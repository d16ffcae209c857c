"""Examine the samples of a work unit: every record and picture, and with a shard's first unit its checksum and
offsets."""

from __future__ import annotations

import hashlib
import io
import tarfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_tools.build.ordered_workers import WorkUnit
from data_tools.build.shard_writer import count_sample
from pdfx.data.numbers import key_number
from pdfx.data.samples import PlainTarInfo, SampleError
from pdfx.data.schema import INDEX_NAME, ShardEntry, identity_number
from pdfx.data.shard import Shard
from pdfx.data.storage.base import Storage, StorageError
from pdfx.model.pictures import ImageError, decode_image, image_header

_BLOCK = 1 << 23


def examine_tar(storage: Storage, shard: Shard) -> tuple[list[str], bool]:
    """Compare a shard's tar with its checksum and its stored offsets.

    Returns:
        A sentence for each problem, and whether the stored offsets match the tar as far as it can be read. Only then
        can samples be read by their offsets.
    """
    stream = _Stream(storage, shard.entry)
    try:
        starts, end = _sample_starts(stream)
        while stream.read(_BLOCK):
            pass
    except StorageError as error:
        return [f"The shard {shard.path} cannot be read to its end: {error}."], True
    problems = []
    if stream.digest.hexdigest() != shard.entry.sha256:
        problems.append(
            f"The shard {shard.path} has another SHA-256 than {INDEX_NAME} says; copy it again, or build it again."
        )
    expected, found = shard.offsets, np.array([*starts, end])
    if np.array_equal(found, expected):
        return problems, True
    if len(starts) < shard.entry.samples and np.array_equal(found[:-1], expected[: len(starts)]):
        return [
            *problems,
            f"The tar {shard.path} breaks off in or after its sample number {max(len(starts) - 1, 0)}; copy it "
            "again, or build it again.",
        ], True
    sentence = (
        f"The offsets of the shard {shard.path} are not those of its samples, so that its samples were not "
        "looked at; build it again."
    )
    return [*problems, sentence], False


class _Stream(io.RawIOBase):
    """Reads a file once from beginning to end for tarfile, and computes its checksum on the way."""

    def __init__(self, storage: Storage, entry: ShardEntry):
        self._storage, self._name, self._size = storage, entry.name, entry.bytes
        self._position = 0
        self.digest = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        size = min(size if size >= 0 else self._size, self._size - self._position)
        data = self._storage.read(self._name, self._position, size) if size else b""
        self._position += size
        self.digest.update(data)
        return data


def _sample_starts(stream: _Stream) -> tuple[list[int], int]:
    """Where each sample begins, and where the last one ends, as far as the bytes are a sound tar."""
    starts: list[int] = []
    end, last_key = 0, None
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_BLOCK, tarinfo=PlainTarInfo) as archive:
            while (member := archive.next()) is not None:
                key = member.name.partition(".")[0]
                if key != last_key:
                    starts.append(member.offset)
                    last_key = key
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                # tarfile keeps a kilobyte of every member otherwise.
                archive.members.clear()  # type: ignore[attr-defined]  # missing from the library's type stubs
    except StorageError:
        raise
    except Exception:  # see pdfx.data.samples; the damage is what the caller sees in the numbers
        pass
    return starts, end


Processor = Callable[[list[dict], list[str]], Any]
"""The same type as ``pdfx.data.batch.Processor``; importing that file would import torch into every check."""


@dataclass
class Findings:
    """What was found in a work unit.

    Attributes:
        problems: one sentence each.
        misplaced: the shard's stored offsets do not match its tar, so none of its samples can be checked.
        keys: ``key_number`` of each sample's key; empty if samples were not looked at.
        counts: what the samples without a problem add to the shard's statistics.
        target_ids: the identity of each target that could be read, as a signed 64-bit number.
        candidates: the same kind of number for every candidate that a sample names.
    """

    problems: list[str] = field(default_factory=list)
    misplaced: bool = False
    keys: array = field(default_factory=lambda: array("q"))
    counts: Counter[str] = field(default_factory=Counter)
    target_ids: array = field(default_factory=lambda: array("q"))
    candidates: set[int] = field(default_factory=set)


@dataclass
class Examiner:
    """Examines one work unit; it is sent to worker processes. The first unit of a shard also covers the file as a
    whole."""

    storage: Storage
    shards: list[Shard]
    processor: Processor | None = None

    def __call__(self, part: WorkUnit) -> Findings:
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
    findings.target_ids.append(identity_number(record.target_id or ""))
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
    if processor is None:
        return
    for name, side in record.sides():
        if all(image in decoded for image in side.images) and (
            reason := _refusal(processor, name, side.text, [decoded[image] for image in side.images])
        ):
            yield str(place.error(key, f"of its {name}, {reason}"))


def _refusal(processor: Processor, side: str, text: str, images: list) -> str | None:
    """Why the processor does not take an item; None if it does."""
    from pdfx.data.batch import refusal

    try:
        processor([{"text": text, "images": images}], ["query" if side == "query" else "target"])
    except Exception as error:  # as in training, see refusal
        return refusal(error)
    return None
