"""Writing shards: a single one with its statistics, a series of them, and whole directories of them."""

from __future__ import annotations

import json
import math
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pdfx.data.schema import INDEX_NAME, Record, ShardEntry, ShardIndex, fingerprint
from pdfx.data.storage.base import Storage, StorageError
from pdfx.errors import UserError
from pdfx.host.files import ChecksummedStream, checksummed, sync, write_checksummed
from pdfx.host.reading import parse_json
from pdfx.host.system_errors import naming
from pdfx.model.pictures import ImageError, image_header

STAGING_NAME = ".unfinished"
_OF_SIDES = ("items", "texts", "characters", "images", "image_bytes", "pixels")
STATISTICS = (
    "samples",
    "targets_only",
    "images_reencoded",
    *(f"{side}_{name}" for side in ("query", "target", "negatives") for name in _OF_SIDES),
)
"""What the ``NNNNN_stats.json`` beside a shard counts. Every value is a sum over samples, so shards add up."""
_MOST_BYTES = 1 << 20


def pack_members(key: str, members: Mapping[str, bytes]) -> bytes:
    """A sample as it stands in a tar: headers and contents, the JSON member first, as webdataset's own writer would
    write them.

    Args:
        members: contents by suffix.
    """
    parts: list[bytes] = []
    for suffix in sorted(members):
        header = tarfile.TarInfo(f"{key}.{suffix}")
        header.size, header.mode = len(members[suffix]), 0o644
        parts += header.tobuf(tarfile.USTAR_FORMAT), members[suffix], bytes(-len(members[suffix]) % tarfile.BLOCKSIZE)
    return b"".join(parts)


def count_sample(record: Record, pictures: Mapping[str, tuple[int, tuple[int, int]]]) -> Counter[str]:
    """The counts of one sample.

    Args:
        pictures: bytes and (width, height) of each image, by the name that the record gives it.
    """
    counts = Counter(samples=1, targets_only=int(record.query is None))
    for prefix, side in record.sides():
        name = prefix.partition(".")[0]
        counts[f"{name}_items"] += 1
        counts[f"{name}_texts"] += bool(side.text)
        counts[f"{name}_characters"] += len(side.text)
        for image in side.images:
            size, (width, height) = pictures[image]
            counts[f"{name}_images"] += 1
            counts[f"{name}_image_bytes"] += size
            counts[f"{name}_pixels"] += width * height
    return counts


def read_stats(storage: Storage, entry: ShardEntry) -> dict[str, int]:
    """What the shard's ``NNNNN_stats.json`` says: "bytes", and ``STATISTICS``.

    Raises:
        UserError: it is missing or damaged, or counts other samples or bytes than the index does.
    """
    path = storage.where(entry.stats_name)
    try:
        stats = parse_json(storage.load(entry.stats_name, _MOST_BYTES))
    except StorageError as error:
        state = "are missing" if error.missing else f"cannot be read ({error})"
        raise UserError(f"The statistics {path} {state}; copy them again, or build the shard again.") from None
    except ValueError as error:
        raise UserError(
            f"The statistics {path} are not valid JSON ({error}); copy them again, or build the shard again."
        ) from None
    names = ("bytes", *STATISTICS)
    if not isinstance(stats, dict) or not all(type(stats.get(name)) is int for name in names):
        raise UserError(
            f"The statistics {path} are damaged: they must hold whole numbers for {', '.join(names)}; build the shard "
            "again."
        )
    counts = {name: stats[name] for name in names}
    if (counts["bytes"], counts["samples"]) != (entry.bytes, entry.samples):
        raise UserError(f"The statistics {path} do not fit the shard {entry.name}; copy both again, or build it again.")
    return counts


class ShardWriter:
    """A shard in the making. Its files grow in a folder of their own and are complete, and on the disk, before any of
    them enters the directory of shards.

    Args:
        staging: the folder, on the same file system as the directory of shards.
        number: of the shard; its files are named by it.
    """

    def __init__(self, staging: Path, number: int):
        self.staging, self.name = staging, f"{number:05d}.tar"
        self.counts: Counter[str] = Counter(dict.fromkeys(STATISTICS, 0))
        self._file = (staging / self.name).open("wb")
        self._stream = ChecksummedStream(self._file)
        self._offsets = [0]

    @property
    def samples(self) -> int:
        return len(self._offsets) - 1

    @property
    def size(self) -> int:
        """Bytes of the samples so far."""
        return self._offsets[-1]

    def add(self, sample: bytes, counts: Counter[str]) -> None:
        """Append a sample.

        Args:
            sample: what ``pack_members`` gave, or the bytes of a sample of another shard.
            counts: what ``count_sample`` gave.
        """
        self._stream.write(sample)
        self._offsets.append(self.size + len(sample))
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


@dataclass(frozen=True)
class Written:
    """A finished directory of shards. ``bytes``: of its tars."""

    path: Path
    shards: int
    samples: int
    bytes: int
    fingerprint: str


@contextmanager
def new_directories(paths: list[Path]) -> Iterator[None]:
    """Makes directories, each with a folder ``STAGING_NAME`` for unfinished files. At the end that folder is gone;
    if the block fails, everything is.

    Raises:
        UserError: a directory exists and is not empty, or two are the same, or one lies in another.
    """
    _require_apart(paths)
    for path in paths:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise UserError(f"{path} is not an empty directory; delete it or name another one.")
    with ExitStack() as undo:
        for path in paths:
            undo.callback(_remove, path, _first_missing(path))
            (path / STAGING_NAME).mkdir(parents=True)
        with naming(" or ".join(map(str, paths))):
            yield
        for path in paths:
            shutil.rmtree(path / STAGING_NAME)
        undo.pop_all()


class ShardSeries:
    """The shards of one new directory, written one after another.

    Args:
        path: one of ``new_directories``.
        samples_per_shard, shard_bytes: a shard ends when it holds so many samples, or before the sample that would make
            it hold more bytes.
    """

    def __init__(self, path: Path, samples_per_shard: float = math.inf, shard_bytes: float = math.inf):
        self.path, self.samples_per_shard, self.shard_bytes = path, samples_per_shard, shard_bytes
        self.entries: list[ShardEntry] = []
        self._targets_only = 0
        self._writer: ShardWriter | None = None

    def __enter__(self) -> ShardSeries:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, key: str, record: Record, members: dict[str, bytes]) -> None:
        """Append a sample.

        Args:
            members: contents by suffix, the record's own among them as "json".

        Raises:
            UserError: a picture is missing or has no sound header.
        """
        names = [name for _, side in record.sides() for name in side.images]
        try:
            pictures = {name: (len(members[name]), image_header(members[name])[1]) for name in names}
        except KeyError as error:
            raise UserError(
                f"The sample '{key}' lacks its image {error}; find all such samples with 'pdfx shards check --full'."
            ) from None
        except ImageError as error:
            raise UserError(
                f"A picture of the sample '{key}' cannot be used: {error}; find all such samples with 'pdfx shards "
                "check --full'."
            ) from None
        data = pack_members(key, members)
        writer = self._writer
        if writer is not None and (
            writer.samples == self.samples_per_shard or writer.size + len(data) > self.shard_bytes
        ):
            self.end_shard()
        self._writer = self._writer or ShardWriter(self.path / STAGING_NAME, len(self.entries))
        self._writer.add(data, count_sample(record, pictures))

    def end_shard(self) -> None:
        """The next sample begins a new shard; if the last one did already, nothing happens."""
        if self._writer is not None:
            self._targets_only += self._writer.counts["targets_only"]
            self.entries.append(self._writer.finish(self.path))
            self._writer = None

    def finish(self) -> Written:
        """Write the index, after which the directory is a finished one."""
        self.end_shard()
        return finish_directory(self.path, self.entries, self._targets_only)


def finish_directory(path: Path, shards: list[ShardEntry], targets_only: int) -> Written:
    """Write the index of one of ``new_directories``; all its shards must be there."""
    index = write_index(path / STAGING_NAME, path, shards, targets_only)
    return Written(path, len(shards), index.samples, sum(entry.bytes for entry in shards), index.fingerprint)


def _require_apart(paths: list[Path]) -> None:
    real = [path.resolve() for path in paths]
    for i, one in enumerate(real):
        for j, other in enumerate(real[:i]):
            if one == other or one in other.parents or other in one.parents:
                raise UserError(
                    f"{paths[j]} and {paths[i]} are the same directory, or one lies in the other; give each its own."
                )


def _first_missing(path: Path) -> Path | None:
    """The topmost of a path and its folders that does not exist yet; None if the path exists."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    return missing[-1] if missing else None


def _remove(path: Path, created: Path | None) -> None:
    if created is not None:
        shutil.rmtree(created, ignore_errors=True)
        return
    for child in path.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()
