"""Reading shards: one contiguous byte range per sample, parsed in memory. Nothing is ever unpacked to disk."""

from __future__ import annotations

import bisect
import io
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from pydantic import ValidationError

from pdfx.errors import UserError

from .images import MAX_IMAGE_PIXELS, ImageError, decode_image
from .schema import INDEX_NAME, Record, ShardEntry, ShardIndex, Side, explain, identity_number

_REBUILD = "build it again with 'pdfx shards build'"
_HEAD_BYTES = 4096
_OPEN_SHARDS = 64

KINDS = ("unreachable", "damaged", "picture", "processor")
"""Why samples cannot be used: their bytes could not be fetched; tar or record are no sound ones; a picture is missing or cannot be decoded; the model's
processor refuses them."""


class SampleError(ValueError):
    """One sample cannot be used; the message is a sentence that names the shard, the key and the reason.

    Attributes:
        key: empty where the damage hides it.
        kind: one of ``KINDS``, what coverage reports count.
    """

    def __init__(self, message: str, key: str = "", kind: str = "damaged"):
        super().__init__(message)
        self.key, self.kind = key, kind


@dataclass
class Sample:
    """One pair with its hard negatives. A side is ``{"text": str, "images": [PIL.Image in RGB, ...]}``."""

    key: str
    query: dict
    target: dict
    negatives: list[dict]
    target_id: int
    """Signed 64-bit hash of the target's identity."""
    negative_ids: list[int]
    """The same of each hard negative."""
    shard: str = ""


class Shard:
    """One tar of samples with its byte offsets. Safe to use after a fork (positioned reads share no file position) and to pickle."""

    def __init__(self, directory: Path, entry: ShardEntry, max_image_pixels: int = MAX_IMAGE_PIXELS):
        self.path = directory / entry.name
        self.entry = entry
        self.max_image_pixels = max_image_pixels
        self._file: IO[bytes] | None = None
        self._offsets: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None, "_offsets": None}

    def check_sizes(self) -> None:
        """Raises UserError where the tar or its offsets are missing or have another size than the index says."""
        offsets_path = self.path.with_name(self.entry.offsets_name)
        for path in (self.path, offsets_path):
            if not path.is_file():
                raise UserError(f"The shard file {path} is missing, though {INDEX_NAME} lists it; restore it, or {_REBUILD}.")
        size = self.path.stat().st_size
        if size != self.entry.bytes:
            state = "truncated" if size < self.entry.bytes else "longer than it should be"
            raise UserError(f"The shard {self.path} is {state}: it has {size} bytes and {INDEX_NAME} says {self.entry.bytes}; copy it again, or {_REBUILD}.")
        if offsets_path.stat().st_size < 8 * (self.entry.samples + 1):
            raise UserError(f"The offsets {offsets_path} are truncated; copy them again, or {_REBUILD}.")

    @property
    def offsets(self) -> np.ndarray:
        """int64 [samples + 1]: where each sample begins in the tar, in bytes, and where the last one ends.

        Raises:
            UserError: the file of offsets is damaged or does not fit the shard.
        """
        if self._offsets is None:
            path = self.path.with_name(self.entry.offsets_name)
            try:
                offsets = np.load(path, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise UserError(f"The offsets {path} cannot be read ({error}); copy them again, or {_REBUILD}.") from None
            fits = offsets.dtype == np.int64 and offsets.shape == (self.entry.samples + 1,)
            if not fits or offsets[0] < 0 or offsets[-1] > self.entry.bytes or (np.diff(offsets) <= 0).any():
                raise UserError(f"The offsets {path} do not fit the shard {self.path.name}; copy both again, or {_REBUILD}.")
            self._offsets = offsets
        return self._offsets

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def record(self, i: int) -> tuple[str, Record]:
        """Key and record of sample ``i`` of this shard; reads a few kilobytes, no images.

        Raises:
            SampleError: the bytes are damaged.
        """
        head = self._read(i, _HEAD_BYTES)
        try:
            member = tarfile.TarInfo.frombuf(head[:512], "utf-8", "strict")
        except (tarfile.TarError, UnicodeDecodeError):
            member = None
        key, _, suffix = member.name.partition(".") if member else ("", "", "")
        if suffix == "json" and member.isreg() and 512 + member.size <= len(head):
            return key, self._parse_record(i, key, head[512 : 512 + member.size])
        return self.raw(i)[:2]

    def raw(self, i: int) -> tuple[str, Record, dict[str, bytes]]:
        """Key, record and members' bytes by suffix of sample ``i`` of this shard. Raises SampleError where the tar or the record is damaged."""
        key, members = self._members(i)
        return key, self._parse_record(i, key, members["json"]), members

    def read(self, i: int) -> Sample:
        """Sample ``i`` of this shard with decoded images.

        Raises:
            SampleError: the bytes, the record or an image are damaged.
        """
        key, record, members = self.raw(i)
        decoded = {name: self._decode(i, key, side, members) for name, side in record.sides()}
        return Sample(
            key=key,
            query=decoded["query"],
            target=decoded["target"],
            negatives=[decoded[f"negatives.{m}"] for m in range(len(record.negatives))],
            target_id=identity_number(record.target_id),
            negative_ids=[identity_number(negative.target_id) for negative in record.negatives],
            shard=self.path.name,
        )

    def read_item(self, i: int, side: str) -> dict:
        """The query or the target of sample ``i`` alone. Raises SampleError like ``read``."""
        key, record, members = self.raw(i)
        return self._decode(i, key, getattr(record, side), members)

    def _members(self, i: int) -> tuple[str, dict[str, bytes]]:
        data = self._read(i)
        members, keys = {}, set()
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
                for member in archive:
                    key, _, suffix = member.name.partition(".")
                    content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
                    if content is None or suffix in members:
                        raise self._error(i, key, f"the member '{member.name}' is no plain file or there twice")
                    keys.add(key)
                    members[suffix] = content.read()
        except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
            if isinstance(error, SampleError):
                raise
            raise self._error(i, "", f"its bytes are no sound tar ({error})") from error
        if len(keys) != 1 or "json" not in members:
            raise self._error(i, "", f"it must be the members of one key with a '.json' among them, not {sorted(keys)} with {sorted(members)}")
        return keys.pop(), members

    def _read(self, i: int, limit: int | None = None) -> bytes:
        start, stop = int(self.offsets[i]), int(self.offsets[i + 1])
        length = stop - start if limit is None else min(limit, stop - start)
        try:
            if self._file is None:
                self._file = open(self.path, "rb", buffering=0)
            data = os.pread(self._file.fileno(), length, start)
        except OSError as error:
            raise self._error(i, "", f"its bytes cannot be read ({error.strerror})", "unreachable") from error
        if len(data) != length:
            raise self._error(i, "", "the shard ends before the sample does")
        return data

    def _parse_record(self, i: int, key: str, data: bytes) -> Record:
        try:
            record = Record.model_validate_json(data)
        except ValidationError as error:
            raise self._error(i, key, f"in its record, {explain(error)}") from None
        if record.target_id is None or any(negative.target_id is None for negative in record.negatives):
            raise self._error(i, key, "in its record, 'target_id' is missing")
        return record

    def _decode(self, i: int, key: str, side: Side, members: dict[str, bytes]) -> dict:
        return {"text": side.text, "images": [self._image(i, key, name, members) for name in side.images]}

    def _image(self, i: int, key: str, name: str, members: dict[str, bytes]) -> Image.Image:
        if name not in members:
            raise self._error(i, key, f"the image '{name}' is missing", "picture")
        try:
            return decode_image(members[name], self.max_image_pixels)
        except ImageError as error:
            raise self._error(i, key, f"the image '{name}' cannot be used: {error}", "picture") from error

    def _error(self, i: int, key: str, reason: str, kind: str = "damaged") -> SampleError:
        name = f"sample '{key}' (number {i})" if key else f"sample number {i}"
        return SampleError(f"In shard {self.path.name}, {name} cannot be used: {reason}.", key, kind)


class ShardedDataset:
    """The samples of a directory of shards, by number, in the order of the index.

    Raises:
        UserError: the directory, its index or a shard is missing, or a file has not the size that the index says; the message names the file.
    """

    def __init__(self, path: str | Path, max_image_pixels: int = MAX_IMAGE_PIXELS):
        self.path = Path(path)
        self.index = read_index(self.path)
        self.shards = [Shard(self.path, entry, max_image_pixels) for entry in self.index.shards]
        for shard in self.shards:
            shard.check_sizes()
        self.shard_sizes = [entry.samples for entry in self.index.shards]
        self._starts = [0, *accumulate(self.shard_sizes)]
        self._open: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return self.index.samples

    @property
    def fingerprint(self) -> str:
        """Changes with any byte of any shard."""
        return self.index.fingerprint

    def read(self, i: int) -> Sample:
        """Sample ``i`` with decoded images. Raises SampleError where it is damaged, IndexError where there is none."""
        shard, row = self._locate(i)
        return shard.read(row)

    def read_item(self, i: int, side: str) -> dict:
        """The ``query`` or ``target`` of sample ``i`` alone; only its own images are decoded. Raises like ``read``."""
        shard, row = self._locate(i)
        return shard.read_item(row, side)

    def records(self, numbers: Iterable[int] | None = None) -> Iterable[tuple[str, Record]]:
        """(key, record) of the samples, without reading images. Raises SampleError where one is damaged."""
        for i in range(len(self)) if numbers is None else numbers:
            shard, row = self._locate(i)
            yield shard.record(row)

    def _locate(self, i: int) -> tuple[Shard, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        number = bisect.bisect_right(self._starts, i) - 1
        self._open[number] = None
        self._open.move_to_end(number)
        if len(self._open) > _OPEN_SHARDS:
            oldest, _ = self._open.popitem(last=False)
            self.shards[oldest].close()
        return self.shards[number], i - self._starts[number]


def read_index(directory: Path) -> ShardIndex:
    """The index of a directory of shards.

    Raises:
        UserError: it is missing, damaged, or of another version.
    """
    path = directory / INDEX_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        what = "There is no directory of shards at" if not directory.is_dir() else f"There is no {INDEX_NAME}, so no finished shards, in"
        raise UserError(f"{what} {directory}; make it with 'pdfx shards build'.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    try:
        version = json.loads(data).get("version")
    except (ValueError, AttributeError):
        version = 1
    if version != 1:
        raise UserError(f"{path} has version {version!r} and this pdfx reads version 1; {_REBUILD}.")
    try:
        return ShardIndex.model_validate_json(data)
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {explain(error)}; copy it again, or {_REBUILD}.") from None
