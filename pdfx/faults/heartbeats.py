"""What ranks can exchange when collectives no longer work: signs of life, and who failed.

A small key-value store of the run's own (torch's ``TCPStore``), held by rank 0; it never waits for a GPU or for another
rank's main thread.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Literal

import psutil
import torch.distributed as dist

from pdfx.distributed.world import World
from pdfx.faults.run_lock import machine

FAILURE = "failure"
LEFT = "left"

DEPARTURE = 8.0
"""Seconds that the ranks have to end one after another, so that the last entry of the log is the one that matters."""

EXIT_LOST = 76
"""Exit code of a job in which a rank hung or vanished. Mostly a machine is the reason, and the same command resumes
from the last checkpoint."""


class Unreachable(Exception):
    """Rank 0, which holds the store, does not answer."""


@dataclass(frozen=True)
class Failure:
    """Why a job ends before its time.

    Attributes:
        rank: whose log entry reports it.
        kind: ``error``: an exception; ``mistake``: the user's, reported in a sentence; ``stall``: no progress;
            ``lost``: a process is gone; ``stop``: asked to.
        code: every rank's exit code.
        missing: ranks that are gone, whom nobody needs to wait for.
    """

    rank: int
    kind: Literal["error", "mistake", "stall", "lost", "stop"]
    code: int
    missing: int = 0


@dataclass(frozen=True)
class Sign:
    """A sign of life: what the main thread is at, and how far."""

    beat: int
    """Grows with every sign."""
    step: int
    marks: int
    """Of progress in the step."""
    doing: str
    waiting: bool = False
    """Whether it waits for other ranks; only looked at when something is wrong, as is ``place``."""
    place: str = ""
    """File, line and function."""


def blame(signs: dict[int, Sign]) -> list[int]:
    """The ranks that most likely hold the others up, from everyone's last sign: those that could not even look at
    themselves; otherwise the ones furthest behind and, among these, those that wait for nobody."""
    silent = [rank for rank, sign in signs.items() if not sign.place]
    if silent:
        return silent
    reached = {rank: (sign.step, sign.marks) for rank, sign in signs.items()}
    behind = [rank for rank, place in reached.items() if place == min(reached.values())]
    return [rank for rank in behind if not signs[rank].waiting] or behind


class Lifeline:
    """One rank's connection. Every rank makes one at the same time.

    Args:
        world: of more than one rank.
        patience: seconds until rank 0 counts as unreachable.

    Attributes:
        members: host, process and machine of every rank.
    """

    def __init__(self, world: World, patience: float):
        self.rank, self.size, self.patience, self.broken, self.missing = world.rank, world.size, patience, False, 0
        self._deadline = math.inf
        self.members = world.gather((socket.gethostname(), os.getpid(), machine()))
        # Rank 0's address is known to be reachable: the process group met there.
        host, timeout = os.environ["MASTER_ADDR"], timedelta(seconds=max(60.0, patience))
        own = (
            dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout) if world.rank == 0 else None
        )
        port = world.from_first(own.port if own else None)
        self._store = own or dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
        self.give(Sign(0, 0, 0, "starting"))
        world.barrier()

    def name(self, rank: int) -> str:
        host, process, _ = self.members[rank]
        return f"Rank {rank} (host {host}, process {process})"

    def is_frozen(self, rank: int) -> bool:
        """Whether its process is known to be there still."""
        _, process, place = self.members[rank]
        try:
            return place == self.members[self.rank][2] and psutil.Process(process).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def describe_lost(self, ranks: list[int]) -> str:
        """What there is to say about ranks that vanished."""
        more = f" and {len(ranks) - 3} more" if len(ranks) > 3 else ""
        names = ", ".join(map(self.name, ranks[:3])) + more
        if all(map(self.is_frozen, ranks)):
            return (
                f"{names} gave no more sign of life, so the job ends: the process is still there, but it does not run; "
                "a signal stopped it, or it hangs in C code or in the kernel, as for a file system that does not "
                "answer. The same command resumes from the last checkpoint."
            )
        return (
            f"{names} gave no more sign of life, so the job ends: the process is gone without a word. It was killed, "
            "most often because the machine's memory ran out (see its kernel log with 'dmesg'), or it crashed or ended "
            "itself (the launcher names the signal or exit code), or the node is down. The same command resumes from "
            "the last checkpoint; if memory was the reason, lower train.chunk_tokens, data.num_workers or "
            "data.prefetch_batches."
        )

    def give(self, sign: Sign) -> None:
        """Let the others see a sign of life."""
        self._ask(lambda: self._store.set(f"sign/{self.rank}", json.dumps(asdict(sign))))

    def signs(self) -> list[Sign]:
        """The last sign of each rank."""
        keys = [f"sign/{rank}" for rank in range(self.size)]
        return [Sign(**json.loads(text)) for text in self._ask(lambda: self._store.multi_get(keys))]

    def final_signs(self) -> list[Sign]:
        """The same as soon as each says where the rank is, or after a while."""
        deadline, signs = self._end_of_departure(), self.signs()
        while not all(sign.place for sign in signs) and time.monotonic() < deadline:
            time.sleep(0.05)
            signs = self.signs()
        return signs

    def claim(self, failure: Failure) -> bool:
        """Announce to all ranks that the job ends; False if another rank was first, whose failure then counts."""
        text, self.missing, self._deadline = json.dumps(asdict(failure)), failure.missing, time.monotonic() + DEPARTURE
        return self._ask(lambda: self._store.compare_set(FAILURE, "", text)).decode() == text

    def failure(self) -> Failure | None:
        """What some rank claimed."""
        if not self._ask(lambda: self._store.check([FAILURE])):
            return None
        failure = Failure(**json.loads(self._ask(lambda: self._store.get(FAILURE))))
        self.missing = failure.missing
        return failure

    def wait_to_report(self) -> None:
        """Before this rank reports why the job ends: wait until the others have ended. Rank 0 stays longest."""
        self._wait_for_departures(self.size - (1 if self.rank == 0 else 2))

    def depart(self) -> None:
        """The last call before the process ends. Rank 0 waits for the others, who still ask its store."""
        if self.rank == 0:
            self._wait_for_departures(self.size - 1)
            return
        with suppress(Unreachable):
            self._ask(lambda: self._store.add(LEFT, 1))

    def _end_of_departure(self) -> float:
        """When waiting for others ends: all waits after a claimed failure add up to one departure."""
        return min(self._deadline, time.monotonic() + DEPARTURE)

    def _wait_for_departures(self, count: int) -> None:
        deadline = self._end_of_departure()
        with suppress(Unreachable):
            while self._ask(lambda: self._store.add(LEFT, 0)) < count - self.missing and time.monotonic() < deadline:
                time.sleep(0.05)

    def _ask(self, call: Callable):
        """The store's answer. It is asked in a thread of its own, since some of its calls would wait for ever for a
        process that was stopped.

        Raises:
            Unreachable: no answer, now or earlier.
        """
        if self.broken:
            raise Unreachable
        answer = []

        def ask() -> None:
            # All that the store raises is one.
            with suppress(RuntimeError):
                answer.append(call())

        thread = threading.Thread(target=ask, daemon=True)
        # A process whose memory ran out may get no thread.
        with suppress(RuntimeError):
            thread.start()
            thread.join(self.patience)
        if not answer:
            self.broken = True
            raise Unreachable
        return answer[0]
