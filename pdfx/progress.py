"""A progress bar on stderr, so that stdout holds results only."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressBar(Progress):
    """rich's progress display, silent where stderr is no terminal; ``counter`` gives what the library's long functions call."""

    def __init__(self):
        console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)

    def counter(self, description: str) -> Callable[[int, int], None]:
        """A function of (items done, items in all)."""
        task = self.add_task(description, total=None)
        return lambda done, total: self.update(task, completed=done, total=total)
