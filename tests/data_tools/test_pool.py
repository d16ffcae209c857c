import os
import signal
import threading
import time

import pytest

from data_tools.build.ordered_workers import run_in_order
from pdfx.errors import UserError


class Square:
    """Squares, the sooner the larger the number."""

    def __call__(self, number: int) -> tuple[int, int]:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number**2, os.getpid()


class Fatal:
    """Ends its own process at one of the numbers."""

    def __call__(self, number: int) -> int:
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return number


class FatalWhileSending:
    """Ends its own process while its second result, of many megabytes, is on the way."""

    def __call__(self, number: int) -> bytes:
        if number == 1:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return bytes(1 << 25)


class Wrong:
    def __call__(self, number: int) -> int:
        # The first one fails last.
        time.sleep(0.3 * (number == 0))
        raise UserError(f"number {number} is wrong")


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_the_order_of_the_requests(workers):
    results = list(run_in_order(Square(), range(30), workers))
    assert [(request, square) for request, (square, _) in results] == [(i, i**2) for i in range(30)]
    processes = {process for _, (_, process) in results}
    assert (processes == {os.getpid()}) == (workers == 0)


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 2])
def test_requests_are_not_read_far_ahead(workers):
    read = 0

    def requests():
        nonlocal read
        for number in range(50):
            read += 1
            yield number

    for done, _ in enumerate(run_in_order(Square(), requests(), workers), start=1):
        assert read - done < max(3 * workers, 1)


@pytest.mark.process
def test_closing_early_ends_the_workers():
    results = run_in_order(Square(), range(1000), 2)
    _, (_, worker) = next(results)
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


@pytest.mark.process
def test_a_worker_that_is_killed_is_told_in_one_sentence():
    with pytest.raises(UserError, match="A worker process was killed, most often because memory ran out"):
        list(run_in_order(Fatal(), range(20), 2))


@pytest.mark.process
def test_a_worker_that_is_killed_in_the_middle_of_a_result_is_not_waited_for():
    with pytest.raises(UserError, match="A worker process was killed"):
        for _ in run_in_order(FatalWhileSending(), range(3), 1):
            time.sleep(0.5)


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_job_raises_arrives(workers):
    with pytest.raises(UserError, match="number 0 is wrong"):
        list(run_in_order(Wrong(), range(20), workers))
