"""A thread in each rank that ends the process if training makes no progress, whatever the main thread hangs in."""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from pdfx.config.run_files import STACKS
from pdfx.config.train_sections import GuardsSection
from pdfx.faults.heartbeats import DEPARTURE, EXIT_LOST, Failure, Lifeline, Sign, Unreachable, blame
from pdfx.faults.progress import END, Patience, Progress
from pdfx.faults.stacks import leave_note, main_place, read_main_stack, write_stacks
from pdfx.faults.stopping import EXIT_STOPPED, StopRequest
from pdfx.host.console import print_last

INTERVAL = 1.0
"""Seconds between two looks."""


class Watchdog:
    """Looks once a second: has the main thread made progress, does every rank live, has some rank failed?

    Args:
        lifeline: None for a run of one rank.
        trouble: asked at every look; a sentence ends the run with it. It must answer at once.
        stop: attended to from now on; one that comes before the first step ends the run at once.
        storage: see ``Patience``.
    """

    def __init__(
        self,
        settings: GuardsSection,
        progress: Progress,
        run: Path,
        rank: int,
        lifeline: Lifeline | None = None,
        trouble: Callable[[], str | None] = lambda: None,
        stop: StopRequest | None = None,
        storage: float = 0.0,
    ):
        self.settings, self.progress, self.run, self.rank = settings, progress, run, rank
        self.lifeline, self.trouble, self.stop_request = lifeline, trouble, stop
        self.patience = Patience(settings, storage)
        self.beat, self.first_silent = 0, 0.0
        self.claimed = time.time()
        self.woke = -math.inf
        """When this process last got to run again after it was frozen for a while."""
        self._waited: dict[int, tuple[int, float]] = {}
        self._decides, self._ended, self._timer = True, threading.Event(), threading.Lock()
        self.thread = threading.Thread(target=self._run, name="pdfx watchdog", daemon=True)
        self.thread.start()

    def stand_down(self) -> None:
        """Decide nothing any more, since the main thread is about to end the process. Signs of life continue."""
        with self._timer:
            self._decides = False
            faulthandler.cancel_dump_traceback_later()

    def leave_to(self, failure: Failure) -> None:
        """For the main thread, which learned that the job ends with this failure. If this watchdog claimed it, it
        reports it and ends the process, and this returns only if it does not get to it."""
        if failure.rank == self.rank and threading.current_thread() is not self.thread:
            self.thread.join(2 * DEPARTURE)

    def stop(self) -> None:
        self.stand_down()
        self._ended.set()
        self.thread.join(DEPARTURE)

    def find_lost(self, lifeline: Lifeline, seconds: float, passed: float) -> list[int]:
        """Ranks without a new sign of life for so many seconds; to be called again and again, ``passed`` seconds after
        the last time.

        Raises:
            Unreachable: rank 0 does not answer, so it is lost itself.
        """
        for rank, sign in enumerate(lifeline.signs()):
            beat, waited = self._waited.get(rank, (sign.beat, 0.0))
            self._waited[rank] = (beat, waited + passed) if sign.beat == beat else (sign.beat, 0.0)
        return [rank for rank, (_, waited) in self._waited.items() if waited > seconds and rank != self.rank]

    def reports_first_rank(self) -> bool:
        """Whether this rank reports that rank 0 is gone, which would otherwise choose the reporter: the next one, and
        one of each node, since rank 0's may be down; but none that was frozen itself, which is what made the others
        leave."""
        chosen = self.rank == 1 or os.environ.get("LOCAL_RANK") == "0"
        return chosen and time.monotonic() - self.woke > 3 * self.settings.lost_seconds

    def _run(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(INTERVAL):
            # A process that was suspended as a whole has not been waiting meanwhile.
            now = time.monotonic()
            self.woke = now if now - last > self.settings.lost_seconds / 2 else self.woke
            passed, last = min(now - last, 2 * INTERVAL), now
            with self._timer:
                if self._decides:
                    # Reports where the process hangs if not even this thread gets to run, because something holds the
                    # interpreter's lock.
                    faulthandler.dump_traceback_later(self.settings.lost_seconds)
            try:
                self._look(passed)
            except Unreachable:
                # The next look finds out whether rank 0 is gone for good.
                continue
            except Exception:
                traceback.print_exc()

    def _look(self, passed: float) -> None:
        stop = self.stop_request
        over = self.patience.is_over(self.progress, passed, bool(stop and stop.urgent))
        if self.lifeline:
            self._meet_the_others(self.lifeline, passed)
        if self._decides and (sentence := self.trouble()):
            self._end(Failure(self.rank, "lost", EXIT_LOST), sentence)
        if self._decides and stop and stop.asked and not self.progress.begun:
            self._end(
                Failure(self.rank, "stop", EXIT_STOPPED),
                "Stopped by a signal before the first step; the same command starts again.",
            )
        if self._decides and over:
            self._end(Failure(self.rank, "stall", EXIT_LOST))

    def _meet_the_others(self, lifeline: Lifeline, passed: float) -> None:
        """Give a sign of life, follow another rank's failure, and on rank 0 look for ranks that gave no sign."""
        try:
            self.beat += 1
            lifeline.give(Sign(self.beat, self.progress.step, self.progress.marks, self.progress.doing))
            failure = lifeline.failure() if self._decides else None
            watches = self._decides and self.rank == 0
            lost = self.find_lost(lifeline, self.settings.lost_seconds, passed) if watches else []
        except Unreachable:
            if self.progress.doing == END:
                # Rank 0 has ended in order.
                self.lifeline = None
                return
            # Rank 0 may be ending in order, and this rank's main thread as well.
            self.first_silent += passed
            if self._decides and self.first_silent > DEPARTURE:
                self._exit(EXIT_LOST, lifeline.describe_lost([0]) if self.reports_first_rank() else "")
            return
        if failure:
            self._follow(failure)
        elif lost:
            self._end(Failure(self.rank, "lost", EXIT_LOST, len(lost)), lifeline.describe_lost(lost))

    def _end(self, failure: Failure, sentence: str = "") -> None:
        """End all ranks; this one reports why, unless another was first."""
        if self.lifeline and not self.lifeline.claim(failure):
            self._follow(self.lifeline.failure() or failure)
            return
        self.claimed = time.time()
        if failure.kind == "stall":
            self._write_stacks()
        if self.lifeline:
            self.lifeline.wait_to_report()
        self._exit(failure.code, self._tell_stall() if failure.kind == "stall" else sentence)

    def _follow(self, failure: Failure) -> None:
        """Leave silently, because another rank reports why; nothing if the main thread leaves by itself meanwhile."""
        if not self._decides:
            return
        if failure.kind == "stall":
            self._write_stacks()
        # Launchers that name the first rank to end should find the one that failed.
        time.sleep(INTERVAL)
        self._exit(failure.code, "")

    def _exit(self, code: int, sentence: str) -> None:
        faulthandler.dump_traceback_later(2 * DEPARTURE, exit=True)
        if sentence:
            print_last(sentence)
            leave_note(sentence, self.claimed)
        if self.lifeline:
            self.lifeline.depart()
        os._exit(code)

    def _last_sign(self) -> Sign:
        place, waiting = main_place()
        return Sign(self.beat + 1, self.progress.step, self.progress.marks, self.progress.doing, waiting, place)

    def _write_stacks(self) -> None:
        # The reason for the stall may be the very file system that the stacks go to.
        faulthandler.dump_traceback_later(2 * DEPARTURE, exit=True)
        sign = self._last_sign()
        if self.lifeline:
            self.lifeline.give(sign)
        title = (
            f"Rank {self.rank} in step {sign.step} had to {sign.doing} and made no progress for "
            f"{self.patience.quiet:.0f} s: {sign.place}"
        )
        try:
            write_stacks(self.run, self.rank, title)
        except OSError as error:
            print(f"Rank {self.rank} could not write its stack: {error}", file=sys.stderr, flush=True)

    def _tell_stall(self) -> str:
        """Which rank holds the others up, where it is, and its stack."""
        signs = dict(enumerate(self.lifeline.final_signs())) if self.lifeline else {self.rank: self._last_sign()}
        behind = blame(signs)
        lines = [
            f"No progress for {self.patience.quiet:.0f} s ({self.patience.setting}); the stack of each rank is in "
            f"{self.run / STACKS}."
        ]
        lines += [read_main_stack(self.run, behind[0]).rstrip()] if signs[behind[0]].place else []
        for rank in behind[:3]:
            sign, name = signs[rank], self.lifeline.name(rank) if self.lifeline else f"Rank {rank}"
            place = f"; it is at {sign.place}" if sign.place else ", and did not answer when asked where it is"
            lines.append(
                f"{name} {'holds the others up' if len(behind) < len(signs) else 'hangs'}: in step {sign.step} it "
                f"had to {sign.doing}{place}."
            )
        return "\n".join(lines)
