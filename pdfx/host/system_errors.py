"""What the operating system refuses (disk, limits, memory), from any library, as a sentence that names the file."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from pdfx.errors import UserError

CURES = {
    errno.ENOSPC: "free some room there",
    errno.EDQUOT: "free some room there",
    errno.EFBIG: "raise the limit of a file's size ('ulimit -f')",
    errno.EMFILE: "raise the limit of open files ('ulimit -n')",
    errno.ENFILE: "the machine has too many open files",
}
SHARED_MEMORY = "/dev/shm"
_NEXT_TO_NOTHING = 2**16
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory", "bad_alloc")

# As Python, Rust (safetensors) and torch write them into messages of other errors.
_NUMBERS = (
    re.compile(r"\[Errno (?P<number>\d+)\][^:\n]*(?:: '(?P<file>[^'\n]+)')?"),
    re.compile(r"\(os error (?P<number>\d+)\)(?: at path \"(?P<file>[^\"]+)\")?"),
    re.compile(r"<(?P<file>/torch_[^>]*)>.*\((?P<number>\d+)\)"),
)

# numpy and torch keep the number to themselves.
_CUT_SHORT = " requested and "
_TORCH_CUT_SHORT = ("PytorchStreamWriter failed", "unexpected pos")


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Errors of the system in the block name this file, unless they name one."""
    try:
        yield
    except OSError as error:
        if _CUT_SHORT in str(error):
            raise UserError(
                f"{path} could not be written whole, most often because its disk is full; free some room there."
            ) from error
        error.filename = error.filename or str(path)
        raise


def system_error(error: BaseException) -> tuple[int, str | None] | None:
    """The operating system's number behind an error of any library, and the file, if known; None for other errors."""
    if isinstance(error, OSError) and error.errno:
        name = error.filename2 or error.filename
        return error.errno, None if name is None else os.fsdecode(name) if isinstance(name, bytes) else str(name)
    found = next(filter(None, (pattern.search(str(error)) for pattern in _NUMBERS)), None)
    if found is None or isinstance(error, UserError):
        return None
    name = found["file"]
    return int(found["number"]), f"{SHARED_MEMORY}{name}" if name and name.startswith("/torch_") else name


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in OUT_OF_MEMORY)
    )


def sentence_of(error: BaseException) -> str | None:
    """One sentence about an error of the system, from any library; None for a fault of the program."""
    if is_out_of_memory(error):
        return "Memory ran out; use a smaller batch or fewer processes, or a machine with more memory."
    if any(word in str(error) for word in _TORCH_CUT_SHORT):
        return "A file could not be written whole, most often because its disk is full; free some room there."
    if (known := system_error(error)) is None:
        return " ".join(str(error).split()) if isinstance(error, OSError) else None
    number, name = known
    if name is None and number == errno.ENOSPC:
        # Semaphores and batches of worker processes lie in shared memory, and errors about them name nothing.
        places = (SHARED_MEMORY, tempfile.gettempdir())
        name = next((place for place in places if shutil.disk_usage(place).free < _NEXT_TO_NOTHING), None)
    cure = f"; {CURES[number]}." if number in CURES else "."
    if name and name.startswith(SHARED_MEMORY):
        cure = (
            "; use fewer worker processes (data.num_workers, --workers), or give the machine or container more "
            "shared memory."
        )
    return (f"{name}: {os.strerror(number)}" if name else os.strerror(number)) + cure
