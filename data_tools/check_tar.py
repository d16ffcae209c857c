"""Examining a shard's tar as a whole, in one reading: its checksum, and whether its samples lie where the offsets say."""

from __future__ import annotations

import hashlib
import tarfile

import numpy as np

from pdfx.data.plain_tar import PlainTarInfo
from pdfx.data.schema import INDEX_NAME
from pdfx.data.shards import Shard
from pdfx.data.storage import Storage, StorageError

_BLOCK = 1 << 23


def examine_tar(storage: Storage, shard: Shard) -> tuple[list[str], bool]:
    """One sentence for each problem, and whether the offsets are those of the samples (as far as the tar can be read), so that these can be read by them."""
    stream = _Stream(storage, shard.entry.name, shard.entry.bytes)
    try:
        starts, end = _sample_starts(stream)
        stream.read_rest()
    except StorageError as error:
        return [f"The shard {shard.path} cannot be read to its end: {error}."], True
    problems = []
    if stream.sha256() != shard.entry.sha256:
        problems.append(f"The shard {shard.path} has another SHA-256 than {INDEX_NAME} says; copy it again, or build it again.")
    expected, found = shard.offsets, np.array([*starts, end])
    if np.array_equal(found, expected):
        return problems, True
    if len(starts) < shard.entry.samples and np.array_equal(found[:-1], expected[: len(starts)]):
        return [*problems, f"The tar {shard.path} breaks off in or after its sample number {max(len(starts) - 1, 0)}; copy it again, or build it again."], True
    sentence = f"The offsets of the shard {shard.path} are not those of its samples, so that its samples were not looked at; build it again."
    return [*problems, sentence], False


class _Stream:
    """A file's bytes from its beginning to its end, for tarfile, with their checksum."""

    def __init__(self, storage: Storage, name: str, size: int):
        self._storage, self._name, self._size = storage, name, size
        self._position = 0
        self._digest = hashlib.sha256()

    def read(self, length: int) -> bytes:
        length = min(length, self._size - self._position)
        data = self._storage.read(self._name, self._position, length) if length else b""
        self._position += length
        self._digest.update(data)
        return data

    def read_rest(self) -> None:
        while self.read(_BLOCK):
            pass

    def sha256(self) -> str:
        return self._digest.hexdigest()


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
                archive.members.clear()
    except StorageError:
        raise
    except Exception:  # see pdfx.data.samples; the damage is what the caller sees in the numbers
        pass
    return starts, end
