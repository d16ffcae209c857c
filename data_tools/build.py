"""Building a directory of tar shards from records and images."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from webdataset import TarWriter

from pdfx.data.images import MAX_IMAGE_PIXELS
from pdfx.data.schema import INDEX_NAME, Record, ShardEntry, ShardIndex, content_identity, fingerprint
from pdfx.errors import UserError
from pdfx.files import write_atomically

from .records import ImageFolder, read_records

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""


@dataclass(frozen=True)
class BuildSummary:
    shards: int
    samples: int
    bytes: int
    fingerprint: str


def build_shards(
    records_path: str | Path,
    images_dir: str | Path,
    out_dir: str | Path,
    samples_per_shard: int = 1000,
    progress: Progress | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> BuildSummary:
    """Pack records and their images into shards. The same input gives the same bytes, whenever and by whomever it is built.

    All records and the presence of all images are checked before anything is written; images are decoded as they are packed, and stored as given.
    The index is written last, so a directory without one is unfinished; after an error the directory is as it was before.

    Raises:
        UserError: a record or an image cannot be used (file, line and key are named), there are no records, or ``out_dir`` is not empty.
    """
    records_path, out_dir = Path(records_path), Path(out_dir)
    if samples_per_shard < 1:
        raise UserError(f"samples_per_shard is {samples_per_shard} and must be 1 or more.")
    if out_dir.exists() and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        raise UserError(f"{out_dir} is not an empty directory; delete it or build into another one.")
    folder = ImageFolder(records_path, Path(images_dir), max_image_pixels)
    total = _check_records(records_path, folder)
    existed = out_dir.exists()
    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        samples = _count(_samples(records_path, folder), total, progress)
        entries = []
        while len(entries) * samples_per_shard < total:
            entries.append(_write_shard(out_dir, f"{len(entries):05d}", islice(samples, samples_per_shard)))
        index = ShardIndex(shards=entries, samples=total, fingerprint=fingerprint(entries))
        with write_atomically(out_dir / INDEX_NAME) as stream:
            stream.write(index.model_dump_json(indent=1).encode() + b"\n")
    except BaseException:
        _remove(out_dir, keep_directory=existed)
        raise
    return BuildSummary(shards=len(entries), samples=total, bytes=sum(entry.bytes for entry in entries), fingerprint=index.fingerprint)


def scan_offsets(tar_path: Path) -> tuple[list[str], np.ndarray]:
    """The keys of a shard's samples and int64 [samples + 1]: where in the tar each begins, and where the last one ends.

    Raises:
        tarfile.TarError: the file is no sound tar.
    """
    keys: list[str] = []
    offsets: list[int] = []
    end = 0
    with tarfile.open(tar_path, mode="r:") as archive:
        for member in archive:
            key = member.name.partition(".")[0]
            if not keys or keys[-1] != key:
                keys.append(key)
                offsets.append(member.offset)
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        offsets.append(end)
    return keys, np.array(offsets, dtype=np.int64)


def _check_records(records_path: Path, folder: ImageFolder) -> int:
    """The number of records, all of which follow the schema and name images that exist."""
    total = 0
    for number, record in read_records(records_path):
        for _, side in record.sides():
            for name in side.images:
                folder.locate(number, name)
        total += 1
    if total == 0:
        raise UserError(f"There are no records in {records_path}.")
    return total


def _samples(records_path: Path, folder: ImageFolder) -> Iterator[dict[str, str | bytes]]:
    for number, record in read_records(records_path):
        yield _pack(number, record, folder)


def _pack(number: int, record: Record, folder: ImageFolder) -> dict[str, str | bytes]:
    """A sample as webdataset's writer takes it: the JSON member and one member per image."""
    members: dict[str, str | bytes] = {"__key__": record.key}
    packed = record.model_copy(deep=True)
    for prefix, side in packed.sides():
        contents = [folder.read(number, name) for name in side.images]
        side.images = [f"{prefix}.{i}.{extension}" for i, (_, extension) in enumerate(contents)]
        members |= {name: data for name, (data, _) in zip(side.images, contents, strict=True)}
        holder = packed if prefix == "target" else side
        if prefix != "query" and holder.target_id is None:
            holder.target_id = content_identity(side.text, [data for data, _ in contents])
    return {**members, "json": packed.model_dump_json().encode()}


def _write_shard(out_dir: Path, stem: str, samples: Iterator[dict[str, str | bytes]]) -> ShardEntry:
    path = out_dir / f"{stem}.tar"
    with path.open("wb") as stream, TarWriter(stream, encoder=False, user="", group="", mode=0o644, mtime=0) as writer:
        for sample in samples:
            writer.write(sample)
    keys, offsets = scan_offsets(path)
    entry = ShardEntry(name=path.name, samples=len(keys), bytes=path.stat().st_size, sha256=file_sha256(path))
    np.save(out_dir / entry.offsets_name, offsets)
    return entry


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _count(samples: Iterator[dict], total: int, progress: Progress | None) -> Iterator[dict]:
    for done, sample in enumerate(samples):
        if progress:
            progress(done, total)
        yield sample
    if progress:
        progress(total, total)


def _remove(directory: Path, keep_directory: bool) -> None:
    if not keep_directory:
        shutil.rmtree(directory)
        return
    for path in directory.iterdir():
        path.unlink()
