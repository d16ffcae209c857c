"""What a build of shards is told to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from data_tools.build.encode import Encoding
from pdfx.errors import UserError
from pdfx.model.pictures import MAX_IMAGE_PIXELS

LEAKS = ("query", "target", "image")
"""What may be compared with evaluation sets."""


@dataclass(frozen=True)
class BuildSettings:
    """Settings of ``data_tools.build.builder.build``.

    Attributes:
        samples_per_shard, shard_bytes: a shard ends with the sample that makes it reach the one, or before the sample
            that would make it pass the other. A single sample of more than ``shard_bytes`` has a shard of its own.
        encoding: how pictures are stored.
        max_image_pixels: larger pictures are refused.
        deduplicate: leave out records whose query and target, texts and pictures, are those of an earlier record.
        evaluation: directories of shards that the records are compared with; or their addresses, as ``ShardedDataset``
            takes them.
        leaks: which of ``LEAKS`` are compared.
        drop_leaked: leave out the records that an evaluation set shares something with; otherwise they are only
            reported.
        max_bad_share: the build stops where more than this share of the records cannot be used; a single one is
            forgiven unless the share is 0.
        workers: processes that read and pack; with 0 and 1 this process does. Each imports the main script, which must
            guard its entry with ``if __name__ == "__main__":``.
        overwrite: delete an earlier build first.

    Raises:
        UserError: a value is out of range.
    """

    samples_per_shard: int = 10_000
    shard_bytes: int = 1_000_000_000
    encoding: Encoding = field(default_factory=Encoding)
    max_image_pixels: int = MAX_IMAGE_PIXELS
    deduplicate: bool = False
    evaluation: tuple[str | Path, ...] = ()
    leaks: tuple[str, ...] = LEAKS
    drop_leaked: bool = False
    max_bad_share: float = 0.01
    workers: int = 1
    overwrite: bool = False

    def __post_init__(self):
        for name in ("samples_per_shard", "shard_bytes", "max_image_pixels"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)} and must be 1 or more.")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"max_bad_share is {self.max_bad_share:g} and must be from 0 to 1.")
        if self.workers < 0:
            raise UserError(f"workers is {self.workers} and must be 0 or more.")
        for name in self.leaks:
            if name not in LEAKS:
                raise UserError(f"'{name}' cannot be compared with evaluation sets; choose among {', '.join(LEAKS)}.")
        if set(self.leaks) != set(LEAKS) and not self.evaluation:
            raise UserError("What is compared (--leak, leaks) has no effect without evaluation shards to compare with.")
        if self.drop_leaked and not self.evaluation:
            raise UserError("Leaked records can only be left out where evaluation shards are given to compare with.")

    def identity(self) -> dict:
        """Plain values of what decides the bytes that are written; the evaluation sets themselves are told by their
        fingerprints elsewhere."""
        kept = {
            name: getattr(self, name)
            for name in ("samples_per_shard", "shard_bytes", "max_image_pixels", "deduplicate", "drop_leaked")
        }
        return {**kept, **self.encoding.identity(), "leaks": sorted(self.leaks)}
