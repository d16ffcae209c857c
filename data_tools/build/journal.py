"""What is finished of a build, written down so that the same build resumes after it was stopped at any moment."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from pdfx.data.schema import ShardEntry, StrictModel, identity_number
from pdfx.errors import UserError
from pdfx.host.files import sync

JOURNAL_NAME = "build.jsonl"
FOLDER_NAME = ".build"
_VERSION = 2
START_OVER = "start over with --overwrite (overwrite=True)"


class Step(StrictModel):
    """The state of a build after a shard was finished, or at its end. Counts are those since the build's beginning.

    Attributes:
        shard: None at the end.
        position: how many of the source's records are dealt with; their samples are all in finished shards.
        targets_only: samples without a query.
        rejected: records that gave no sample, by kind.
        leaks: records that share something with an evaluation set, by what they share, and all "records".
        lengths: bytes of each append-only file.
        stamp: a number of the files of all pictures so far, as ``chained`` makes it of ``Packer.stamp``.
    """

    shard: ShardEntry | None = None
    position: int = 0
    targets_only: int = 0
    rejected: dict[str, int] = {}
    leaks: dict[str, int] = {}
    lengths: dict[str, int] = {}
    stamp: int = 0


def chained(before: int, stamp: int) -> int:
    """``Step.stamp`` after one more record."""
    return identity_number(f"{before} {stamp}") if stamp else before


class Journal:
    """The file ``build.jsonl`` in the directory that is built: what decides the build, then one line per step, each on
    the disk before the next begins. A line that a kill cut short does not count.

    Args:
        out: the directory that is built.
        identity: plain values.
        overwrite: forget what is there.

    Attributes:
        steps: those of the build so far.
        folder: what only an unfinished build needs.
        staging: an empty folder therein for unfinished files.

    Raises:
        UserError: another process builds there, or the journal is damaged, or it is that of another build whose shards
            would be lost.
    """

    def __init__(self, out: Path, identity: dict, overwrite: bool = False):
        self.out, self.path = out, out / JOURNAL_NAME
        self.folder = out / FOLDER_NAME
        self.staging = self.folder / "unfinished"
        self._stream = self._open()
        try:
            self.steps = self._resume(json.loads(json.dumps(identity)), overwrite)
        except BaseException:
            self._stream.close()
            raise
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(parents=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    @property
    def last(self) -> Step:
        return self.steps[-1] if self.steps else Step()

    @property
    def shards(self) -> list[ShardEntry]:
        return [step.shard for step in self.steps if step.shard is not None]

    @property
    def is_at_end(self) -> bool:
        """Whether every record is dealt with, though the index may be missing yet."""
        return bool(self.steps) and self.steps[-1].shard is None

    def append(self, step: Step) -> None:
        self._write(step.model_dump_json())
        self.steps.append(step)

    def tidy(self) -> None:
        """Remove what only an unfinished build needs."""
        shutil.rmtree(self.folder)

    def _open(self) -> BinaryIO:
        stream = self.path.open("a+b")
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise UserError(f"{self.path} is not a plain file; remove it, or build into another directory.")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise UserError(f"Another process is building in {self.out}; wait for it, or end it first.") from None
        except OSError:
            # Some network file systems have no locks; two builds at once are then for the user to avoid.
            pass
        return stream

    def _resume(self, identity: dict, overwrite: bool) -> list[Step]:
        self._stream.seek(0)
        data = b"" if overwrite else self._stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        steps = self._parse(whole.splitlines(), identity) if whole else None
        if steps is not None:
            if len(whole) < len(data):
                self._stream.truncate(len(whole))
            return steps
        self._stream.truncate(0)
        self._write(json.dumps({"version": _VERSION, "identity": identity}, ensure_ascii=False))
        sync(self.out)
        return []

    def _parse(self, lines: list[bytes], identity: dict) -> list[Step] | None:
        """The steps; None if they are those of another build that has finished nothing."""
        try:
            header = json.loads(lines[0])
            before = header["identity"] if header["version"] == _VERSION else None
            steps = [Step.model_validate_json(line) for line in lines[1:]]
        except (ValueError, KeyError, TypeError, ValidationError):
            raise UserError(f"The journal {self.path} is damaged; {START_OVER}.") from None
        if before == identity:
            return steps
        if not steps:
            return None
        reasons = (
            "; ".join(_differences(before, identity)) if before is not None else "it is that of another version of pdfx"
        )
        if steps[-1].shard is None:
            what = (
                f"is not an empty directory: it holds a finished build of something else ({reasons}); build into "
                "another one"
            )
            raise UserError(f"{self.out} {what}, or {START_OVER}.")
        raise UserError(
            f"{self.out} holds a build that cannot be resumed like this ({reasons}); give the same again, or "
            f"{START_OVER}."
        )

    def _write(self, line: str) -> None:
        # Of names that are not UTF-8, what cannot be encoded is escaped as JSON has it.
        self._stream.write(line.encode(errors="backslashreplace") + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What two trees of plain values differ in, as parts of a sentence."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            part
            for key in keys
            for part in _differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        ]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [part for old, new in zip(before, now, strict=True) for part in _differences(old, new, name)]
    return [] if before == now else [f"{name} is {json.dumps(now)} and was {json.dumps(before)}"]
