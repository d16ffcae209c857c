"""Writing one shard: a tar, where its samples begin, and what it holds."""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_tools.build.stats import NAMES
from pdfx.data.schema import INDEX_NAME, ShardEntry, ShardIndex, fingerprint
from pdfx.host.files import ChecksummedStream, checksummed, sync, write_checksummed


def pack_members(key: str, members: Mapping[str, bytes]) -> bytes:
    """A sample as it stands in a tar: headers and contents, the JSON member first, as webdataset's own writer would
    write them.

    Args:
        members: contents by suffix.
    """
    parts = []
    for suffix in sorted(members):
        header = tarfile.TarInfo(f"{key}.{suffix}")
        header.size, header.mode = len(members[suffix]), 0o644
        parts += header.tobuf(tarfile.USTAR_FORMAT), members[suffix], bytes(-len(members[suffix]) % tarfile.BLOCKSIZE)
    return b"".join(parts)


class ShardWriter:
    """A shard in the making. Its files grow in a folder of their own and are complete, and on the disk, before any of
    them enters the directory of shards.

    Args:
        staging: the folder, on the same file system as the directory of shards.
        number: of the shard; its files are named by it.
    """

    def __init__(self, staging: Path, number: int):
        self.staging, self.name = staging, f"{number:05d}.tar"
        self.counts: Counter[str] = Counter(dict.fromkeys(NAMES, 0))
        self._file = (staging / self.name).open("wb")
        self._stream = ChecksummedStream(self._file)
        self._offsets = [0]

    @property
    def samples(self) -> int:
        return len(self._offsets) - 1

    @property
    def bytes(self) -> int:
        """Of the samples so far."""
        return self._offsets[-1]

    def add(self, sample: bytes, counts: Counter[str]) -> None:
        """Append a sample.

        Args:
            sample: what ``pack_members`` gave, or the bytes of a sample of another shard.
            counts: what ``stats.count_sample`` gave.
        """
        self._stream.write(sample)
        self._offsets.append(self.bytes + len(sample))
        self.counts.update(counts)

    def finish(self, out: Path) -> ShardEntry:
        """Move the shard's files into the directory of shards."""
        self._stream.write(bytes(2 * tarfile.BLOCKSIZE))
        self._stream.write(bytes(-self._stream.bytes % tarfile.RECORDSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        entry = ShardEntry(name=self.name, samples=self.samples, **asdict(self._stream.record))
        with checksummed(self.staging / entry.offsets_name) as stream:
            np.save(stream, np.array(self._offsets, dtype=np.int64))
        stats = json.dumps({"bytes": entry.bytes, **self.counts}, indent=1).encode() + b"\n"
        write_checksummed(self.staging / entry.stats_name, stats)
        for name in (entry.name, entry.offsets_name, entry.stats_name):
            (self.staging / name).replace(out / name)
        sync(out)
        return entry

    def close(self) -> None:
        """Give the unfinished shard up."""
        self._file.close()


def write_index(staging: Path, out: Path, shards: list[ShardEntry], targets_only: int) -> ShardIndex:
    """Make ``out``, which holds all of these shards, a finished directory of shards.

    Args:
        staging: a folder on the same file system.
        targets_only: how many of the samples have no query.
    """
    samples = sum(entry.samples for entry in shards)
    index = ShardIndex(shards=shards, samples=samples, targets_only=targets_only, fingerprint=fingerprint(shards))
    write_checksummed(staging / INDEX_NAME, index.model_dump_json(indent=1).encode() + b"\n")
    (staging / INDEX_NAME).replace(out / INDEX_NAME)
    sync(out)
    return index
