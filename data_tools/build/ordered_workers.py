"""Worker processes that do a job on one request after another, and whose results come back in order.

Each worker has a connection of its own. With queues that all workers share, as ``concurrent.futures`` has them, a
worker that is killed in the middle of a large result leaves half of it behind, and the main process waits forever for
the rest.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from queue import SimpleQueue
from typing import Any, TypeVar

from pdfx.data.schema import ShardIndex
from pdfx.errors import UserError

_HELD = 3
"""Requests per worker that are read and whose results are not yet taken."""

_SENT = 2
"""Requests that a worker has: one that it works on, and one to continue with at once."""
UNIT_SAMPLES = 256


def run_in_order(
    job: Callable[[Any], Any], requests: Iterable[Any], workers: int
) -> Generator[tuple[Any, Any], None, None]:
    """Yields (request, ``job(request)``) for each request, in order. At most three requests per worker are held at a
    time.

    Close the iterator to end the workers; they also end with this process, if it is killed.

    Args:
        job: a picklable callable.
        workers: processes; with 0 this one does the work.

    Raises:
        UserError: a worker was killed.
    """
    if workers == 0:
        for request in requests:
            yield request, job(request)
        return
    pool = _Pool(job, workers)
    try:
        yield from pool.run(iter(requests))
    finally:
        pool.close()


class _Pool:
    def __init__(self, job: Callable[[Any], Any], workers: int):
        context = _context(job)
        self._processes: list[multiprocessing.context.ForkServerProcess] = []
        self._sent: dict[connection.Connection, int] = {}
        """Per worker's connection, the requests that it has."""
        for _ in range(workers):
            own, its = context.Pipe()
            process = context.Process(target=_work, args=(job, its), daemon=True)
            process.start()
            its.close()
            self._processes.append(process)
            self._sent[own] = 0

    def run(self, requests: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        held: dict[int, Any] = {}
        done: dict[int, tuple[Any, Any]] = {}
        numbered = enumerate(requests)
        following = 0
        is_more = True
        while is_more or held:
            while is_more and len(held) < _HELD * len(self._sent) and (free := self._least_busy()) is not None:
                message = next(numbered, None)
                if message is None:
                    is_more = False
                else:
                    held[message[0]] = message[1]
                    self._send(free, message)
            if held and following not in done:
                done |= self._receive()
            while following in done:
                result, error = done.pop(following)
                if error is not None:
                    raise error[0] from RuntimeError(f"in a worker process:\n{error[1]}")
                yield held.pop(following), result
                following += 1

    def close(self) -> None:
        for own in self._sent:
            own.close()
        for process in self._processes:
            process.join()

    def _least_busy(self) -> connection.Connection | None:
        own = min(self._sent, key=self._sent.__getitem__)
        return own if self._sent[own] < _SENT else None

    def _send(self, to: connection.Connection, message: tuple[int, Any]) -> None:
        try:
            to.send(message)
        except OSError:
            raise _killed() from None
        self._sent[to] += 1

    def _receive(self) -> dict[int, tuple[Any, Any]]:
        """(result, error) by number: errors are raised in their turn, so that what is reported does not depend on which
        worker is faster."""
        results = {}
        ready = connection.wait([own for own, sent in self._sent.items() if sent])
        for own in self._sent.keys() & ready:
            try:
                number, result, error = own.recv()
            except (EOFError, OSError):
                raise _killed() from None
            self._sent[own] -= 1
            results[number] = result, error
        return results


def _killed() -> UserError:
    return UserError(
        "A worker process was killed, most often because memory ran out; use fewer workers. What is finished is kept."
    )


def _context(job: Callable[[Any], Any]) -> multiprocessing.context.ForkServerContext:
    """Workers are forked by a server that was started clean: a fork of this process would inherit the locks of threads
    (a progress bar's, say)."""
    context = multiprocessing.get_context("forkserver")
    # Each worker runs the main module's imports again; it has them at once if the server has them.
    of_main = {str(getattr(value, "__module__", "")) for value in vars(sys.modules["__main__"]).values()}
    of_main &= sys.modules.keys() - {"__main__"}
    context.set_forkserver_preload([__name__, type(job).__module__, *sorted(of_main)])
    return context


def _work(job: Callable[[Any], Any], own: connection.Connection) -> None:
    # A terminal's Ctrl-C reaches every process; what to do then is for the main one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    threading.Thread(target=_take_requests, args=(own, requests), daemon=True).start()
    while True:
        number, request = requests.get()
        message: tuple[int, Any, tuple[Exception, str] | None]
        try:
            message = number, job(request), None
        except Exception as error:  # whatever it is, the main process is to have it
            message = number, None, (error, traceback.format_exc())
        try:
            own.send(message)
        except OSError:
            os._exit(1)


def _take_requests(own: connection.Connection, requests: SimpleQueue) -> None:
    """In a thread, so that the main process never waits to get a request through, and that this one ends as soon as
    that does."""
    try:
        while True:
            requests.put(own.recv())
    except (EOFError, OSError):
        os._exit(0)


Result = TypeVar("Result")


@dataclass(frozen=True)
class WorkUnit:
    """Consecutive samples of one shard: rows ``start`` to ``stop`` (exclusive) of the index's shard number
    ``shard``."""

    shard: int
    start: int
    stop: int
    first: int
    """Number of the unit's first sample among those of the directory."""


def work_units(index: ShardIndex, shards: list[int] | None = None) -> Iterator[WorkUnit]:
    """The samples of all shards, or of those that are given, in order, at most ``UNIT_SAMPLES`` in each. An empty shard
    is one empty unit."""
    first = 0
    for shard, entry in enumerate(index.shards):
        if shards is None or shard in shards:
            for start in range(0, max(1, entry.samples), UNIT_SAMPLES):
                yield WorkUnit(shard, start, min(start + UNIT_SAMPLES, entry.samples), first + start)
        first += entry.samples


def share_out(
    job: Callable[[WorkUnit], Result], units: list[WorkUnit], workers: int
) -> Iterator[tuple[WorkUnit, Result]]:
    """(unit, ``job(unit)``) for each unit, in order. ``job`` is picklable; with one worker, or one unit, this process
    does the work.

    Raises:
        UserError: what the job raises, or a worker was killed.
    """
    processes = min(workers, len(units))
    return run_in_order(job, units, processes if processes > 1 else 0)


def drawn_samples(samples: int, count: int) -> list[int]:
    """At most ``count`` of the numbers below ``samples``, ascending; always the same ones."""
    return sorted(random.Random(0).sample(range(samples), min(count, samples)))
