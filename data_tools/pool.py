"""Worker processes that do a job on one request after another, and whose results come back in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any

from pdfx.errors import UserError

_AHEAD = 2
"""Requests that are waiting or done per worker, besides the one it works on."""

_job: Callable[[Any], Any] | None = None
"""The job of this process, where it is a worker."""


def run_in_order(job: Callable[[Any], Any], requests: Iterable[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """Yields (request, ``job(request)``) for each request, in order. At most three requests per worker are held at a time.

    Close the iterator to end the workers; they also end with this process, where it is killed.

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
    executor = ProcessPoolExecutor(workers, _context(job), _start, (job,))
    pending: deque[tuple[Any, Future]] = deque()
    try:
        for request in requests:
            pending.append((request, executor.submit(_run, request)))
            if len(pending) > (1 + _AHEAD) * workers - 1:
                yield _next(pending)
        while pending:
            yield _next(pending)
    except BrokenProcessPool:
        raise UserError("A worker process was killed, most often because memory ran out; use fewer workers. What is finished is kept.") from None
    finally:
        executor.shutdown(cancel_futures=True)


def _next(pending: deque[tuple[Any, Future]]) -> tuple[Any, Any]:
    request, future = pending.popleft()
    return request, future.result()


def _context(job: Callable[[Any], Any]) -> multiprocessing.context.BaseContext:
    """Workers are forked by a server that was started clean: a fork of this process would inherit the locks of threads (a progress bar's, say)."""
    context = multiprocessing.get_context("forkserver")
    # Each worker runs the main module's imports again; it has them at once where the server has them.
    of_main = {getattr(value, "__module__", None) for value in vars(sys.modules["__main__"]).values()}
    context.set_forkserver_preload([__name__, type(job).__module__, *sorted(of_main & sys.modules.keys() - {"__main__"})])
    return context


def _start(job: Callable[[Any], Any]) -> None:
    global _job
    # A terminal's Ctrl-C reaches every process; what to do then is for the main one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _job = job


def _run(request: Any) -> Any:
    return _job(request)


def _end_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
