"""One run at a time in a run's directory, on one machine or on many that share the file system."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import psutil

from pdfx.config.run_files import LOCK
from pdfx.errors import UserError
from pdfx.host.reading import read_json

BEAT = 10.0
"""Seconds after which the holder touches its lock again."""

STALE = 45.0
"""Seconds that a lock of another machine is watched; if it is not touched meanwhile, its holder is gone."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    token: str
    """Drawn by the holder."""
    host: str
    """For people; containers and clouds give several machines the same name."""
    machine: str
    """One start of one machine, and the process numbers that count there."""
    process: int
    started: float
    """When the process began, since numbers are used again: ticks since the machine's start, whatever the clock."""
    job: str
    """SLURM's number, or ""."""
    restart: str
    """How often SLURM has requeued the job."""
    since: float


def this_process() -> Holder:
    own, job, restart = os.getpid(), os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "0")
    token, host, started = uuid.uuid4().hex, socket.gethostname(), start_of(own)
    return Holder(token, host, machine(), own, started, job, restart, time.time())


def start_of(process: int) -> float:
    """When a process began. Raises psutil.NoSuchProcess if it is gone."""
    try:
        # The name, in brackets, may hold spaces and brackets; the start is the 22nd field.
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        return float(text.rpartition(")")[2].split()[19])
    except OSError:
        return psutil.Process(process).create_time()


def machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return boot + os.readlink("/proc/self/ns/pid")
    except OSError:
        return f"{uuid.getnode():x}"


class RunLock:
    """Held from here to ``release``; a lock whose holder is gone is taken over.

    The holder is gone if its process is, on the same machine; if SLURM has started the same job again; or if
    another machine's holder does not touch the lock while it is watched.

    Args:
        run: the run's directory, which exists.

    Raises:
        UserError: another run holds it, or the lock cannot be written.
    """

    def __init__(self, run: Path):
        self.path, self.own = run / LOCK, this_process()
        self._taken_by: str | None = None
        self._released = threading.Event()
        holder = None
        while holder := self._take(holder):
            if is_alive(holder, self.own, self.path):
                raise UserError(
                    f"train.output_dir '{run}' is in use by another run ({describe(holder)}); wait for it, stop it, or "
                    f"choose another train.output_dir. If it is gone for sure, remove {self.path}."
                )
        # A thread of its own, because a file system may hang.
        threading.Thread(target=self._keep, name="pdfx run lock", daemon=True).start()

    def trouble(self) -> str | None:
        """A sentence if another run has taken the directory meanwhile."""
        if self._taken_by is None:
            return None
        return (
            f"Another run ({self._taken_by}) has taken {self.path.parent} over, so this one ends to leave its files "
            "alone; it was taken for dead, which happens if the file system could not be reached for a while, or if a "
            "job was requeued while its processes went on."
        )

    def release(self) -> None:
        self._released.set()
        with suppress(OSError), alone_with(self.path):
            holder = read_holder(self.path)
            if holder and holder.token == self.own.token:
                self.path.unlink()

    def _take(self, gone: Holder | None) -> Holder | None:
        """Take the lock from ``gone``, or if nobody has it; otherwise return the present holder."""
        try:
            with alone_with(self.path) as stream:
                holder = read_holder(self.path)
                if holder not in (None, gone):
                    return holder
                stream.truncate()
                stream.write(json.dumps(asdict(self.own)).encode())
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}.") from None
        return None

    def _keep(self) -> None:
        while not self._released.wait(BEAT):
            holder = read_holder(self.path)
            if holder is None or holder.token == self.own.token:
                # One that was removed by hand stays removed.
                with suppress(OSError):
                    os.utime(self.path)
            elif not self._released.is_set():
                self._taken_by = describe(holder)
                return


@contextmanager
def alone_with(path: Path) -> Iterator[IO[bytes]]:
    """The file of a lock, made if it is missing, while no other process changes it. Raises OSError."""
    while True:
        with open(os.open(path, os.O_CREAT | os.O_RDWR, 0o644), "r+b", buffering=0) as stream:
            # Without locks of files, as on some network file systems, two that start within the same moment may both
            # get it.
            with suppress(OSError):
                fcntl.flock(stream, fcntl.LOCK_EX)
            # The holder before may have removed it.
            if path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                yield stream
                return


def read_holder(path: Path) -> Holder | None:
    """Who holds the lock; None if nobody does. A lock file that was cut short names nobody, so its holder is gone."""
    try:
        return Holder(**read_json(path))
    except (OSError, ValueError, TypeError):
        return None


def is_alive(holder: Holder, own: Holder, path: Path) -> bool:
    """Whether the holder still runs; takes up to ``STALE`` seconds if it is on another machine."""
    if holder.machine == own.machine:
        return holder.process != own.process and is_running(holder)
    if holder.job and holder.job == own.job and holder.restart != own.restart:
        return False
    print(
        f"{path.parent} may be in use by another run ({describe(holder)}); watching for {STALE:.0f} s whether that "
        "one lives.",
        file=sys.stderr,
        flush=True,
    )
    touched, deadline = last_touch(path), time.monotonic() + STALE
    while time.monotonic() < deadline:
        time.sleep(min(1.0, STALE / 10))
        if last_touch(path) != touched:
            return path.exists()
    return False


def is_running(holder: Holder) -> bool:
    try:
        same = start_of(holder.process) == holder.started
        return same and psutil.Process(holder.process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def last_touch(path: Path) -> float | None:
    """When the lock was touched last. It is opened, because network file systems answer from memory otherwise."""
    try:
        with path.open("rb") as stream:
            return os.fstat(stream.fileno()).st_mtime_ns
    except OSError:
        return None


def describe(holder: Holder) -> str:
    job = f", job {holder.job}" if holder.job else ""
    return (
        f"host {holder.host}, process {holder.process}{job}, since "
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(holder.since))}"
    )
