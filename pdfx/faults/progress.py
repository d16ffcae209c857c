"""What the main thread has reached, and how long it may reach nothing more."""

from __future__ import annotations

from pdfx.config.train_sections import GuardsSection

SLACK = 5.0
"""Stall limit: ``max(guards.stall_seconds, SLACK x longest quiet period so far)``."""


URGENT = 20.0
"""Seconds without progress that are left after a signal which launchers follow with SIGKILL after 30 s; long enough to
report what hangs, and where."""


SETTINGS = {
    "step": "guards.stall_seconds",
    "data": "data.read_timeout_seconds with data.read_retries",
    "first": "guards.first_seconds",
    "pause": "guards.pause_seconds",
    "stop": "after the order to stop",
}
"""What limits the time without progress, by pace."""


END = "end the run"
"""What the main thread is at when the run is complete, and this rank waits for no other one any more."""


PHASES = {
    "embed": "embed a chunk",
    "objective": "compute the objective",
    "backward": "run the backward pass",
    "reduce": "sum gradients over ranks",
    "optimiser": "update the parameters",
}


class Progress:
    """What the main thread has reached: it marks, the watchdog looks.

    Attributes:
        count, marks: of marks in all, and within the optimiser step ``step``.
        doing: what it is at.
        pace: how long that may take, a key of ``SETTINGS``.
        begun: optimiser steps that this process has begun.
    """

    def __init__(self) -> None:
        self.count = self.step = self.marks = self.begun = 0
        self.doing, self.pace = "start", "pause"
        self._known: set[str] = set()

    def begin(self, step: int) -> None:
        """An optimiser step begins. The first one of a process may take long: libraries compile and measure in it."""
        self.step, self.marks, self.begun = step, 0, self.begun + 1
        self.mark("read the batch", "data")

    def phase(self, name: str) -> None:
        """A phase of the step begins (see ``Phases``)."""
        self.mark(PHASES[name])

    def mark(self, doing: str, pace: str = "step") -> None:
        """The main thread now begins to do this. What is new in a process may take longer than the same later."""
        new = self.begun < 2 or doing not in self._known
        self.doing, self.pace = doing, "first" if new and pace != "pause" else pace
        self._known.add(doing)
        self.marks += 1
        self.count += 1


class Patience:
    """How long there has been no progress, and how long there may be none.

    Args:
        settings: the recipe's section ``guards``.
        storage: seconds that one request for data may take with all its retries; 0 if data is local.
    """

    def __init__(self, settings: GuardsSection, storage: float = 0.0):
        self.settings, self.storage, self.quiet = settings, storage, 0.0
        self._longest, self._seen, self._pace = 0.0, 0, "pause"
        self.setting = SETTINGS[self._pace]
        """Which one limits the time now."""

    def is_over(self, progress: Progress, passed: float, urgent: bool = False) -> bool:
        """Whether it is too long, ``passed`` seconds after the last call; ``urgent``: SIGKILL will follow soon."""
        if progress.count != self._seen:
            if self._pace in ("step", "first"):
                # A first time only hints at how slow the machine is.
                self._longest = max(self._longest, self.quiet if self._pace == "step" else self.quiet / SLACK)
            self._seen, self.quiet = progress.count, 0.0
            self._pace = "step" if progress.pace == "data" and not self.storage else progress.pace
        self.quiet += passed
        if self.settings.stall_seconds is None:
            return False
        limits = self._limits(self.settings.stall_seconds)
        pace = "stop" if urgent and self._pace != "pause" and limits["stop"] < limits[self._pace] else self._pace
        self.setting = SETTINGS[pace]
        return self.quiet > limits[pace]

    def _limits(self, stall_seconds: float) -> dict[str, float]:
        usual = max(stall_seconds, SLACK * self._longest)
        return {
            "step": usual,
            "data": max(usual, self.storage),
            "first": max(self.settings.first_seconds, usual, self.storage),
            "pause": self.settings.pause_seconds,
            "stop": max(URGENT, SLACK * self._longest),
        }
