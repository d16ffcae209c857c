"""Safetensors files written and read in pieces, so that no whole tensor, let alone a whole file, must be in memory.

The format (https://github.com/huggingface/safetensors): eight bytes with the header's length, a JSON header with each
tensor's type, shape and place, the data.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdfx.errors import UserError
from pdfx.host.files import FileRecord, checksummed
from pdfx.host.reading import open_plain, parse_json, read_bounded

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in TYPES.items()}
LARGEST_HEADER = 100_000_000
"""The format's own bound, in bytes."""
_MOST_DIMENSIONS = 64
"""PyTorch's own bound."""
_LARGEST_JSON = 1 << 28


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its name, type and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.itemsize


def write_tensors(
    path: Path, tensors: Sequence[tuple[Entry, Iterable[Tensor]]], metadata: dict[str, str]
) -> FileRecord:
    """Write a new file and wait until it is on the disk.

    Args:
        tensors: each entry with the pieces of its flattened values, in order; a piece is asked for when the one before
            is written.

    Raises:
        ValueError: an entry's pieces are of another type or number than it says.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    place = 0
    for entry, _ in tensors:
        header[entry.name] = {
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [place, place + entry.bytes],
        }
        place += entry.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with checksummed(path) as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for entry, pieces in tensors:
            written = 0
            for piece in pieces:
                if piece.dtype != entry.dtype:
                    raise ValueError(f"{entry.name} is {entry.dtype}, but a piece of it is {piece.dtype}")
                stream.write(raw(piece))
                written += piece.numel()
            if written != entry.elements:
                raise ValueError(f"{entry.name} has {entry.elements} elements, but its pieces have {written}")
    return stream.record


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without a copy."""
    if tensor.numel() == 0:
        return memoryview(b"")
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def whole_size(value: object) -> int:
    """A size as a header may hold it. Raises ValueError for everything else."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("a size is not a whole number")
    return value


class TensorFile:
    """A safetensors file to read from; only its header is in memory.

    Raises:
        UserError: there is no such file, or its header is not that of a safetensors file of this length.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with os.fdopen(open_plain(path), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = struct.unpack("<Q", file.read(8))[0]
                if length > min(LARGEST_HEADER, size - 8):
                    raise ValueError("its header is longer than the file")
                header = parse_json(file.read(length))
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            self.entries: dict[str, Entry] = {}
            self._places: dict[str, int] = {}
            if not all(isinstance(value, str) for value in self.metadata.values()):
                raise ValueError("its metadata are not texts")
            reached = 0
            for start, end, name in sorted(
                (*map(whole_size, fields["data_offsets"]), name) for name, fields in header.items()
            ):
                fields = header[name]
                entry = Entry(name, TYPES[fields["dtype"]], tuple(map(whole_size, fields["shape"])))
                countable = (
                    len(entry.shape) <= _MOST_DIMENSIONS and math.prod(size or 1 for size in entry.shape) < 1 << 63
                )
                if not countable or end > size - 8 - length or end - start != entry.bytes:
                    raise ValueError(f"'{name[:80]}' does not lie within the file")
                if start != reached:
                    raise ValueError(f"'{name[:80]}' overlaps another tensor, or leaves a gap before it")
                self.entries[name], self._places[name], reached = entry, 8 + length + start, end
        except FileNotFoundError:
            raise UserError(f"There is no file {path}.") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise UserError(
                f"{path} is not a safetensors file, or is damaged: "
                f"{getattr(error, 'strerror', None) or ' '.join(str(error).split())}."
            ) from None

    def read(self, name: str, start: int = 0, count: int | None = None) -> Tensor:
        """``count`` elements from ``start`` on of a flattened tensor. Raises UserError if the file ends before."""
        entry = self.entries[name]
        count = entry.elements - start if count is None else count
        values = torch.empty(count, dtype=entry.dtype)
        self._fill(raw(values), self._places[name] + start * entry.dtype.itemsize)
        return values

    def read_whole(self, name: str) -> Tensor:
        """A tensor in its shape."""
        return self.read(name).reshape(self.entries[name].shape)

    def _fill(self, buffer: memoryview, place: int) -> None:
        # Opened for each read: a checkpoint of many ranks has more files than a process may hold open.
        descriptor = open_plain(self.path)
        try:
            while buffer:
                count = os.preadv(descriptor, [buffer], place)
                if count == 0:
                    raise UserError(f"{self.path} ends before its last tensor; it was cut short while it was read.")
                buffer, place = buffer[count:], place + count
        finally:
            os.close(descriptor)


def require_sound_files(place: str | Path) -> None:
    """Nothing for a place that is not a folder here, such as a name on the hub.

    Raises:
        UserError: something in the folder is neither a plain file nor a folder, a JSON file is too large, or a
            safetensors file's header is not sound.
    """
    for path in sorted(Path(place).iterdir()) if Path(place).is_dir() else ():
        if path.is_dir() or not path.exists():
            continue
        try:
            descriptor = open_plain(path)
            size = os.fstat(descriptor).st_size
            os.close(descriptor)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from None
        if path.suffix == ".json" and size > _LARGEST_JSON:
            raise UserError(
                f"{path} cannot be read: it has {size} bytes, more than the {_LARGEST_JSON} that are read of "
                "such a file."
            )
        if path.name.endswith(("config.json", ".index.json")):
            try:
                # Others write keys twice.
                parse_json(read_bounded(path), unique=False)
            except (OSError, ValueError) as error:
                raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
        if path.suffix == ".safetensors":
            TensorFile(path)
