"""A progress bar on stderr, so that stdout holds results only."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from pdfx.console import console

_SECONDS_BETWEEN_UPDATES = 0.05


class RateColumn(ProgressColumn):
    """Items per second, lately."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s", style="progress.data.speed")


class ProgressBar(Progress):
    """rich's progress display, silent where stderr is no terminal; ``counter`` gives what the library's long functions call."""

    def __init__(self):
        screen = console(stderr=True)
        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        super().__init__(*columns, console=screen, transient=True, disable=not screen.is_terminal)

    def say(self, sentence: str) -> None:
        """A line on stderr."""
        self.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def counter(self, description: str) -> Callable[[int, int | None], None]:
        """A function of (items done, items in all or None). What its first call says to be done was done before, and enters no rate."""
        task = None
        shown_at = 0.0

        def show(done: int, total: int | None) -> None:
            nonlocal task, shown_at
            now = time.monotonic()
            if task is None:
                task = self.add_task(description, total=total, completed=done)
            elif now - shown_at >= _SECONDS_BETWEEN_UPDATES or done == total:
                self.update(task, completed=done, total=total)
                shown_at = now

        return show
