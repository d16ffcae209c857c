"""Examining the content of shards: checksums, offsets, and every record and picture."""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pdfx.data.schema import INDEX_NAME
from pdfx.data.shards import SampleError, Shard

from .build import file_sha256, scan_offsets
from .keys import key_number
from .parts import Part


@dataclass
class Findings:
    """What was found in a part.

    Attributes:
        problems: one sentence each.
        misplaced: the shard's offsets are not those of its samples, so that no sample of it can be judged.
        keys: ``key_number`` of each sample's key; empty where samples were not looked at.
        sound: samples without a problem.
        without_query: those of them that serve evaluation alone.
    """

    problems: list[str] = field(default_factory=list)
    misplaced: bool = False
    keys: array = field(default_factory=lambda: array("q"))
    sound: int = 0
    without_query: int = 0


@dataclass
class Examiner:
    """Examines one part; travels to worker processes. A shard's first part also stands for the file as a whole."""

    shards: list[Shard]

    def __call__(self, part: Part) -> Findings:
        shard, findings = self.shards[part.shard], Findings()
        if part.start == 0:
            findings.problems += _examine_file(shard, findings)
        if not findings.misplaced:
            for row in range(part.start, part.stop):
                _examine_sample(shard, row, findings)
        shard.close()
        return findings


def _examine_file(shard: Shard, findings: Findings) -> Iterator[str]:
    try:
        if file_sha256(shard.path) != shard.entry.sha256:
            yield f"The shard {shard.path} has another SHA-256 than {INDEX_NAME} says; copy it again, or build it again."
        _, offsets = scan_offsets(shard.path)
    except tarfile.TarError as error:
        yield f"The shard {shard.path} is no sound tar ({error}); copy it again, or build it again."
    except OSError as error:
        yield f"The shard {shard.path} cannot be read ({error.strerror}); see to its rights and its disk, or build it again."
    else:
        findings.misplaced = not np.array_equal(offsets, shard.offsets)
        if findings.misplaced:
            yield f"The offsets of the shard {shard.path} are not those of its samples, so that its samples were not looked at; build it again."


def _examine_sample(shard: Shard, row: int, findings: Findings) -> None:
    try:
        sample = shard.read(row)
    except SampleError as error:
        findings.problems.append(str(error))
        findings.keys.append(key_number(error.key))
    else:
        findings.keys.append(key_number(sample.key))
        findings.sound += 1
        findings.without_query += sample.query is None
