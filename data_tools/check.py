"""Examining a directory of shards, and telling every problem instead of the first."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pdfx.data.images import MAX_IMAGE_PIXELS
from pdfx.data.schema import INDEX_NAME
from pdfx.data.shards import SampleError, Shard, read_index
from pdfx.errors import UserError

from .build import Progress, file_sha256, scan_offsets


def check_shards(path: str | Path, full: bool = False, progress: Progress | None = None, max_image_pixels: int = MAX_IMAGE_PIXELS) -> list[str]:
    """All problems of a directory of shards, one sentence each; an empty list where it is sound.

    Args:
        full: also compare checksums, compare the offsets with the tars, look for repeated keys, and decode every sample. Otherwise only the
            index, the sizes of files and the form of the offsets are looked at.
        progress: called with (samples done, samples in all).
    """
    directory = Path(path)
    try:
        index = read_index(directory)
    except UserError as error:
        return [str(error)]
    problems = list(_unlisted(directory, {name for entry in index.shards for name in (entry.name, entry.offsets_name)}))
    shards_of_keys: dict[str, str] = {}
    done = 0
    for entry in index.shards:
        shard = Shard(directory, entry, max_image_pixels)
        try:
            shard.check_sizes()
            _ = shard.offsets
        except UserError as error:
            problems.append(str(error))
        else:
            if full:
                problems += _check_content(shard, shards_of_keys, lambda row, before=done: progress and progress(before + row, index.samples))
        shard.close()
        done += entry.samples
        if progress:
            progress(done, index.samples)
    return problems


def _unlisted(directory: Path, listed: set[str]) -> Iterator[str]:
    for path in sorted(directory.iterdir()):
        if path.name not in listed | {INDEX_NAME} and path.name.endswith((".tar", ".idx.npy")):
            yield f"{path} is not listed in {INDEX_NAME}, so it is never read; delete it or build the shards again."


def _check_content(shard: Shard, shards_of_keys: dict[str, str], progress) -> Iterator[str]:
    if file_sha256(shard.path) != shard.entry.sha256:
        yield f"The shard {shard.path} has another SHA-256 than {INDEX_NAME} says; copy it again, or build it again."
    try:
        keys, offsets = scan_offsets(shard.path)
    except tarfile.TarError as error:
        yield f"The shard {shard.path} is no sound tar ({error}); copy it again, or build it again."
        return
    if not np.array_equal(offsets, shard.offsets):
        yield f"The offsets of the shard {shard.path} are not those of its samples; build it again."
        return
    for row, key in enumerate(keys):
        if key in shards_of_keys:
            yield f"The key '{key}' is there twice, in {shards_of_keys[key]} and in {shard.path.name}; keys must be unique."
        shards_of_keys[key] = shard.path.name
        try:
            shard.read(row)
        except SampleError as error:
            yield str(error)
        progress(row)
