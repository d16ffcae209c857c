"""Writing one shard: a tar, where its samples begin, and what it holds."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_tools.build.stats import NAMES
from pdfx.data.schema import ShardEntry


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
        self._stream = (staging / self.name).open("wb")
        self._digest = hashlib.sha256()
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
        self._write(sample)
        self._offsets.append(self.bytes + len(sample))
        self.counts.update(counts)

    def finish(self, out: Path) -> ShardEntry:
        """Move the shard's files into the directory of shards."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self._stream.tell() % tarfile.RECORDSIZE))
        entry = ShardEntry(
            name=self.name, samples=self.samples, bytes=self._stream.tell(), sha256=self._digest.hexdigest()
        )
        sync_and_close(self._stream)
        with (self.staging / entry.offsets_name).open("wb") as stream:
            np.save(stream, np.array(self._offsets, dtype=np.int64))
            sync_and_close(stream)
        with (self.staging / entry.stats_name).open("wb") as stream:
            stream.write(json.dumps({"bytes": entry.bytes, **self.counts}, indent=1).encode() + b"\n")
            sync_and_close(stream)
        for name in (entry.name, entry.offsets_name, entry.stats_name):
            (self.staging / name).replace(out / name)
        sync_directory(out)
        return entry

    def close(self) -> None:
        """Give the unfinished shard up."""
        self._stream.close()

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)


def sync_and_close(stream) -> None:
    """See to it that a file's content survives the machine."""
    stream.flush()
    os.fsync(stream.fileno())
    stream.close()


def sync_directory(path: Path) -> None:
    """The same for the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
