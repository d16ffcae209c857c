"""The manifest of a checkpoint: every file's size and checksum, written last, and its comparison with the files."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from pdfx.config.run_files import MANIFEST
from pdfx.errors import UserError
from pdfx.host.files import FileRecord, read_record, stamp, write_checksummed
from pdfx.host.reading import read_json

VERSION = 2
THREADS = 4
"""Files that one process hashes at once."""


class DamagedError(UserError):
    """A checkpoint that is not whole and never will be; not one that cannot be read now, or by this pdfx."""


@dataclass(frozen=True)
class Metric:
    """A figure of the evaluation at a checkpoint's step, which decides whether it is the best one."""

    name: str
    value: float


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint after ``step`` optimiser steps consists of."""

    step: int
    files: dict[str, FileRecord]
    """By path within the checkpoint."""
    metric: Metric | None = None
    """Of the evaluation at this step, if the run chooses its best checkpoint by one."""

    @property
    def bytes(self) -> int:
        return sum(record.bytes for record in self.files.values())


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest with a checksum of its own, and wait until it is on the disk."""
    content = {"version": VERSION, **asdict(manifest)}
    write_checksummed(directory / MANIFEST, json.dumps({**content, "sha256": digest(content)}, indent=1).encode())


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        DamagedError: there is none, or it is damaged.
        UserError: it is of another version, or cannot be read.
    """
    try:
        content = read_json(directory / MANIFEST)
        expected = content.pop("sha256", None)
        version = content.pop("version")
        if version != VERSION:
            raise UserError(
                f"{directory} cannot be read: its format is version {version} and this pdfx reads version {VERSION}; "
                "use the pdfx that wrote it."
            )
        if expected != digest({"version": version, **content}):
            raise DamagedError(
                f"{directory} is not a whole checkpoint: {MANIFEST} is damaged, because its content does not match its "
                "own checksum."
            )
        files = {name: FileRecord(**record) for name, record in content["files"].items()}
        if strange := [
            name
            for name in files
            if ".." in name.split("/") or str(PurePosixPath("x", name)) != f"x/{name}" or name == MANIFEST
        ]:
            raise DamagedError(
                f"{directory} is not a whole checkpoint: {MANIFEST} lists {strange[0]!r}, which is not the name of a "
                "file within it."
            )
        return Manifest(int(content["step"]), files, Metric(**content["metric"]) if content["metric"] else None)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError(f"{directory} is not a whole checkpoint: it has no readable {MANIFEST}.") from None
    except OSError as error:
        raise UserError(f"{directory} cannot be read: {error.strerror} ({MANIFEST}).") from None


def digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def wrong_sizes(directory: Path, manifest: Manifest) -> tuple[list[str], dict[str, tuple]]:
    """What is missing or cut short, each as the end of a sentence, and the files' stamps; no file is read."""
    problems, stamps = [], {}
    for name, record in manifest.files.items():
        try:
            status = (directory / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            problems.append(f"{name} is missing")
            continue
        stamps[name] = stamp(status)
        if not stat.S_ISREG(status.st_mode):
            problems.append(f"{name} is not a plain file")
        elif status.st_size != record.bytes:
            problems.append(f"{name} has {status.st_size} bytes instead of {record.bytes}")
    return problems, stamps


def strays(directory: Path, manifest: Manifest) -> list[str]:
    """Files and links beside those of the manifest; nothing reads them."""
    found = (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted({path.relative_to(directory).as_posix() for path in found} - manifest.files.keys() - {MANIFEST})


def wrong_contents(directory: Path, manifest: Manifest, names: Iterable[str]) -> list[str]:
    """Which of the named files do not have their checksums, each as the end of a sentence. Reads them all."""

    def problem(name: str) -> str | None:
        try:
            found = read_record(directory / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        return None if found == manifest.files[name] else f"{name} is damaged: its content does not match its checksum"

    with ThreadPoolExecutor(THREADS) as pool:
        return [sentence for sentence in pool.map(problem, names) if sentence]


def share_out(manifest: Manifest, parts: int) -> list[list[str]]:
    """The names of the files in ``parts`` lists of about the same number of bytes."""
    shares: list[list[str]] = [[] for _ in range(parts)]
    sizes = [0] * parts
    for name in sorted(manifest.files, key=lambda name: (-manifest.files[name].bytes, name)):
        smallest = sizes.index(min(sizes))
        shares[smallest].append(name)
        sizes[smallest] += manifest.files[name].bytes
    return shares
