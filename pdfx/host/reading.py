"""Reading files of unproven kind and size: a pipe would block for ever, and a false size would fill the memory."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import stat
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SMALL = 1 << 26
"""Bytes of the largest file that is read and parsed as a whole."""
_PIECE = 1 << 20
_MOST_VALUES = 1 << 21
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"')


def open_plain(path: str | Path) -> int:
    """A descriptor of a plain file. Raises OSError, and never blocks, for a pipe, a device or a directory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "it is not a plain file", str(path))
    return descriptor


def read_bounded(path: str | Path, limit: int = SMALL) -> bytes:
    """A whole plain file of at most ``limit`` bytes. Raises OSError like ``open_plain``, and if the file is larger."""
    pieces, size = [], 0
    with os.fdopen(open_plain(path), "rb", buffering=0) as file:
        claimed = os.fstat(file.fileno()).st_size
        while claimed <= limit and size <= limit and (piece := file.read(_PIECE)):
            pieces.append(piece)
            size += len(piece)
    if max(claimed, size) > limit:
        raise OSError(
            errno.EFBIG,
            f"it has {max(claimed, size)} bytes, more than the {limit} that are read of such a file",
            str(path),
        )
    return b"".join(pieces)


def read_json(path: str | Path, limit: int = SMALL) -> Any:
    """The value of a JSON file. Raises OSError like ``read_bounded`` and ValueError like ``parse_json``."""
    return parse_json(read_bounded(path, limit))


def parse_json(data: bytes, unique: bool = True) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: it is not valid, is nested too deeply, has more than two million values, or, if keys must be
            ``unique``, an object has one twice.
    """
    require_few_values(data)
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def require_few_values(data: bytes | str) -> None:
    """Raises ValueError if a JSON text has so many values that they would take a multiple of its own memory."""
    data = data.encode(errors="replace") if isinstance(data, str) else data
    if _separators(data) <= _MOST_VALUES:
        return
    values = place = 0
    for text in chain(_STRINGS.finditer(data), [None]):
        values += _separators(data[place : text.start() if text else None])
        if values > _MOST_VALUES:
            raise ValueError(f"it has more than {_MOST_VALUES} values")
        place = text.end() if text else place


def _separators(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return values


def array_of(data: bytes) -> np.ndarray:
    """The numbers in the bytes of an ``.npy`` file. Raises ValueError if it is none, or of another length."""
    import numpy as np

    stream = io.BytesIO(data)
    try:
        np.lib.format.read_magic(stream)
        shape, in_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    # numpy meets damaged headers with many types of exception (ValueError, EOFError, SyntaxError, ...).
    except Exception as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None
    numbers = memoryview(data)[stream.tell() :]
    if dtype.hasobject or in_columns or dtype.itemsize * math.prod(shape) != len(numbers):
        raise ValueError("its header does not fit its content")
    return np.frombuffer(numbers, dtype).reshape(shape)
