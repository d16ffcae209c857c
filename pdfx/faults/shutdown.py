"""How a job ends: all ranks together, and the last entry of the log is the error of the rank that failed."""

from __future__ import annotations

import faulthandler
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pdfx.checkpoint.directory import open_run_directory
from pdfx.config import Config, ConfigError
from pdfx.data.storage.base import Reading
from pdfx.distributed.world import EXIT_USER_ERROR, PeerFailure, World
from pdfx.errors import UserError
from pdfx.faults.heartbeats import DEPARTURE, EXIT_LOST, Failure, Lifeline, Unreachable
from pdfx.faults.progress import Progress
from pdfx.faults.run_lock import RunLock
from pdfx.faults.stacks import leave_note
from pdfx.faults.stopping import StopRequest
from pdfx.faults.watchdog import INTERVAL, Watchdog
from pdfx.host.console import print_last
from pdfx.host.system_errors import CURES, is_out_of_memory, sentence_of, system_error
from pdfx.host.urls import is_url

EXIT_FAILED = 1
"""Exit code of all ranks if one failed with an error that is not a user's mistake."""

RECONSIDER = 5.0
"""Seconds without a sign of life after which a rank counts as lost if a collective has failed already."""

LONGEST_WORDS = 2000
"""Characters of an error's own words in the last line; its stack has all of them."""

BROKEN_CONNECTION = ("gloo", "NCCL", "Connection", "connection", "Broken pipe", "Socket", "socket")
"""What errors of collectives mention if another rank ended; their classes differ between releases of torch."""


@contextmanager
def watched(config: Config, world: World, stop: StopRequest) -> Iterator[Progress]:
    """Within the block no rank waits for ever: a rank that fails, hangs or vanishes ends all of them, and one of them
    says why.

    Every rank enters it together. Rank 0 also holds the run's directory against other runs. An order to stop is
    attended to from here on. Yields what the main thread marks its progress in.

    Raises:
        UserError: the directory cannot be used, or is in use.
        SystemExit: this rank ends because of another one, or has reported its own error.
    """
    progress = Progress()
    locks: list[RunLock] = []
    lifeline = Lifeline(world, config.guards.lost_seconds) if world.size > 1 else None
    run, trouble = Path(config.train.output_dir), lambda: locks[0].trouble() if locks else None
    watchdog = Watchdog(config.guards, progress, run, world.rank, lifeline, trouble, stop, longest_read(config))
    stop.attended = True
    try:
        with world.together():
            if world.rank == 0:
                locks.append(RunLock(open_run_directory(config.train)))
        yield progress
    except BaseException as cause:
        failed = time.time()
        watchdog.stand_down()
        error = mistake_of(cause, lifeline.name(world.rank) if lifeline else "The run", progress)
        # The exchange between ranks must not become the next thing that a rank hangs in.
        faulthandler.dump_traceback_later(4 * DEPARTURE, exit=True)
        code = settle(error, lifeline, watchdog, failed) if lifeline else settle_alone(error, progress)
        if code is None and error is cause:
            raise
        if code is None:
            raise error from cause
        raise SystemExit(code) from error
    finally:
        for lock in locks:
            lock.release()
        watchdog.stop()
        if lifeline:
            lifeline.depart()
        faulthandler.cancel_dump_traceback_later()


def longest_read(config: Config) -> float:
    """Seconds that a batch may wait for storage: those of one request with its repetitions, and as many as any work may
    take; 0 if all data is local."""
    evaluation = config.data.evaluation or []
    places = [evaluation] if isinstance(evaluation, str) else evaluation
    if not any(map(is_url, [*places, *(own.path for own in config.data.training_sets())])):
        return 0.0
    return Reading.of(config.data).longest_seconds + (config.guards.stall_seconds or 0)


def settle_alone(error: BaseException, progress: Progress) -> int | None:
    """``settle`` for a run of one rank."""
    if isinstance(error, (UserError, ConfigError, KeyboardInterrupt)):
        return None
    print(story(error, "The run", progress), file=sys.stderr, flush=True)
    return EXIT_FAILED


def settle(error: BaseException, lifeline: Lifeline, watchdog: Watchdog, failed: float) -> int | None:
    """Agree with the other ranks on who reports what happened, and report it if it is this rank.

    Returns:
        The exit code if nothing more is to be said; None if the error itself says everything.
    """
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, PeerFailure):
        time.sleep(INTERVAL)
        return None
    mistake = isinstance(error, (UserError, ConfigError))
    failure = Failure(lifeline.rank, "error", EXIT_FAILED)
    if mistake:
        failure = Failure(lifeline.rank, "mistake", EXIT_USER_ERROR)
    try:
        known, lost = find_reason(lifeline, watchdog) if is_broken_connection(error) else (lifeline.failure(), [])
        if lost:
            failure = Failure(lifeline.rank, "lost", EXIT_LOST, len(lost))
        if known or not lifeline.claim(failure):
            known = known or lifeline.failure() or failure
            watchdog.leave_to(known)
            # Launchers that name the first rank to end should find the one that failed.
            time.sleep(INTERVAL)
            return known.code
        lifeline.wait_to_report()
    except Unreachable:
        # Rank 0 is gone, and with it the way to agree.
        lost = [0] if is_broken_connection(error) else []
        if lost and not watchdog.reports_first_rank():
            return EXIT_LOST
    if mistake:
        leave_note(str(error), failed)
        return None
    text = lifeline.describe_lost(lost) if lost else story(error, lifeline.name(lifeline.rank), watchdog.progress)
    print_last(text)
    leave_note(text, failed)
    return EXIT_LOST if lost else EXIT_FAILED


def find_reason(lifeline: Lifeline, watchdog: Watchdog) -> tuple[Failure | None, list[int]]:
    """Why a collective failed on this rank: what another rank claimed, or the ranks that are gone; neither where it was
    this rank's own fault.

    Raises:
        Unreachable: rank 0 is gone.
    """
    deadline = time.monotonic() + RECONSIDER + 2
    while time.monotonic() < deadline:
        failure = lifeline.failure()
        lost = watchdog.find_lost(lifeline, RECONSIDER, 0.25)
        if failure or lost:
            return failure, lost
        time.sleep(0.25)
    return None, []


def is_broken_connection(error: BaseException) -> bool:
    return (
        isinstance(error, RuntimeError)
        and not isinstance(error, UserError)
        and any(word in str(error) for word in BROKEN_CONNECTION)
    )


def mistake_of(error: BaseException, name: str, progress: Progress) -> BaseException:
    """An error of a full disk or a reached limit as the user's mistake; others as they are."""
    known = system_error(error)
    if not known or known[0] not in CURES:
        return error
    return UserError(
        f"{name} failed {place_of(progress)}: {sentence_of(error)} Then the same command resumes from the newest "
        "whole checkpoint."
    )


def place_of(progress: Progress) -> str:
    return f"in step {progress.step}, where it had to {progress.doing}"


def story(error: BaseException, name: str, progress: Progress) -> str:
    """An error as the last entry of a log: its stack, and a sentence that says where it happened."""
    stack, place = "".join(traceback.format_exception(error)), place_of(progress)
    if is_out_of_memory(error):
        return (
            f"{stack}{name} ran out of memory {place}; lower train.chunk_tokens or train.per_device_train_batch_size, "
            "set train.chunk_paths or model.gradient_checkpointing, or raise the ZeRO stage."
        )
    if isinstance(error, SystemExit):
        return f"{stack}{name} failed {place}: something there ended the process with exit code {error.code}."
    return f"{stack}{name} failed {place}: {type(error).__name__}: {' '.join(str(error).split())[:LONGEST_WORDS]}"
