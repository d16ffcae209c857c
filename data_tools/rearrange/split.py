"""Splitting a directory of shards into parts that have no target in common."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from data_tools.build.settings import BuildSettings
from data_tools.build.shard_writer import ShardSeries, Written, new_directories
from data_tools.inspect.measure import distinct_and_sharing
from pdfx.data.schema import Record, identity_number
from pdfx.data.shards import SampleError, ShardedDataset
from pdfx.errors import UserError
from pdfx.host.console import ShowProgress

BY = ("target", "key")


@dataclass(frozen=True)
class Share:
    """A part to make, and which share it gets."""

    path: Path
    share: Fraction

    @classmethod
    def parse(cls, text: str) -> Share:
        """From ``PATH=SHARE``, the share as 0.9 or 9/10.

        Raises:
            UserError: it is written otherwise, or the share is not above 0.
        """
        path, _, number = text.rpartition("=")
        try:
            share = Fraction(number.strip())
        except (ValueError, ZeroDivisionError):
            share = Fraction(0)
        if not path or share <= 0:
            raise UserError(f"'{text}' names no part; write a directory and its share, like shards/train=0.9.")
        return cls(Path(path), share)


@dataclass(frozen=True)
class SplitSettings:
    """Settings of ``split_shards``.

    Attributes:
        parts: whose shares sum to 1.
        seed: another one gives other parts.
        by: "target": samples whose targets have the same identity stay together. "key": each sample goes its own way.
        samples_per_shard, shard_bytes: as in a build.

    Raises:
        UserError: a value is out of range.
    """

    parts: tuple[Share, ...]
    seed: int = 0
    by: str = "target"
    samples_per_shard: int = BuildSettings.samples_per_shard
    shard_bytes: int = BuildSettings.shard_bytes

    def __post_init__(self):
        total = sum(part.share for part in self.parts)
        if total != 1:
            raise UserError(
                f"The shares of the parts sum to {float(total):g} and must sum to 1, so that every sample has its part."
            )
        if self.by not in BY:
            raise UserError(f"Samples cannot be split by '{self.by}'; choose among {', '.join(BY)}.")
        for name in ("samples_per_shard", "shard_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)} and must be 1 or more.")

    def part_of(self, identity: str) -> int:
        """The number of the part that a target or key belongs to: where its hash falls among the shares' bounds."""
        value = int.from_bytes(hashlib.blake2b(f"{self.seed} {identity}".encode(), digest_size=8).digest(), "little")
        return bisect_right(self._bounds, value)

    @cached_property
    def _bounds(self) -> list[int]:
        return [int(bound * (1 << 64)) for bound in accumulate(part.share for part in self.parts[:-1])]


@dataclass(frozen=True)
class SplitPart:
    """A part that was written. ``targets``: its distinct target_ids."""

    written: Written
    targets: int


@dataclass
class _OpenPart:
    series: ShardSeries
    targets: array = field(default_factory=lambda: array("q"))


def split_shards(path: str | Path, settings: SplitSettings, progress: ShowProgress | None = None) -> list[SplitPart]:
    """Copy every sample to one of several new directories of shards, chosen by a hash of its target's identity (or of
    its key) and of the seed.

    No two parts have a target (or key) in common, each has about its share of them, and samples keep their order. The
    same shards and settings give the same bytes. One sample is held at a time, and eight bytes of each.

    Args:
        progress: called with (samples done, samples in all).

    Raises:
        UserError: there are no complete shards, a sample is damaged or has ``candidates`` (which may fall to another
            part), a directory is not empty, or a part would be. Nothing is left behind then.
    """
    dataset = ShardedDataset(path)
    with new_directories([part.path for part in settings.parts]), ExitStack() as stack:
        parts = [
            _OpenPart(stack.enter_context(ShardSeries(part.path, settings.samples_per_shard, settings.shard_bytes)))
            for part in settings.parts
        ]
        for done, (key, record, members) in enumerate(_samples(dataset), start=1):
            target_id = record.target_id or ""
            part = parts[settings.part_of(target_id if settings.by == "target" else key)]
            part.series.add(key, record, members)
            part.targets.append(identity_number(target_id))
            if progress:
                progress(done, len(dataset))
        for part in parts:
            if not part.targets:
                raise UserError(
                    f"No sample of the {len(dataset)} in {path} falls to {part.series.path}; give it a larger share, "
                    "or another seed."
                )
            # All shards are whole before the first index says so.
            part.series.end_shard()
        return [SplitPart(part.series.finish(), distinct_and_sharing(part.targets)["distinct"]) for part in parts]


def _samples(dataset: ShardedDataset) -> Iterator[tuple[str, Record, dict[str, bytes]]]:
    try:
        for key, record, members in dataset.samples():
            if record.candidates is not None:
                raise UserError(
                    f"{dataset.path} cannot be split: the sample '{key}' names candidates, which would fall to "
                    "different parts."
                )
            yield key, record, members
    except SampleError as error:
        raise UserError(
            f"{dataset.path} cannot be split. {error} Find all such samples with 'pdfx shards check --full'."
        ) from None
