"""What the commands of every group share."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pdfx.host.console import console
from pdfx.host.files import parse_size, require_folder, write_json

_SECONDS_BETWEEN_UPDATES = 0.05


class RateColumn(ProgressColumn):
    """Items per second, lately."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(
            "" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s", style="progress.data.speed"
        )


class ProgressBar(Progress):
    """rich's progress display, silent if stderr is no terminal; the library's functions call its ``counter``."""

    def __init__(self):
        screen = console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        super().__init__(*columns, console=screen, transient=True, disable=not screen.is_terminal)

    def say(self, sentence: str) -> None:
        """A line on stderr."""
        self.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def counter(self, description: str) -> Callable[[int, int | None], None]:
        """A function of (items done, items in all or None). What its first call says to be done enters no rate."""
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


ShardsArgument = Annotated[
    str,
    typer.Argument(help="Directory that 'pdfx shards build' wrote, or the URL of one (s3://..., https://...)."),
]
JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="Also write the result to this file; '-' prints it instead of the rest."
    ),
]
SamplesOption = Annotated[int, typer.Option(min=1, help="Most samples of one tar file.")]
SHARD_BYTES: Any = "1GB"
"""The default of ``BytesOption``, as it is shown."""
BytesOption = Annotated[
    int,
    typer.Option(parser=parse_size, metavar="SIZE", help="Most bytes of samples of one tar file, as in 500MB or 1GiB."),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, help="Processes that share the work; one per core by default, at most 8.")
]


def worker_count(wanted: int | None) -> int:
    """Processes that a command uses: as many as are wanted, or one per core that this process may use, at most 8."""
    return min(len(os.sched_getaffinity(0)), 8) if wanted is None else wanted


def example(*commands: str) -> str:
    """The epilog of a command's help."""
    return "[bold]Example[/bold]\n\n" + "\n\n".join(f"  {command}" for command in commands)


def prints_json(file: Path | None) -> bool:
    """Whether ``--json -`` asks for the result on stdout. Raises UserError if ``file`` could not be written."""
    if file is None or str(file) == "-":
        return file is not None
    require_folder(file)
    return False


def give_json(result: Any, file: Path | None) -> None:
    """Writes what ``--json`` asks for, if anything."""
    if str(file) == "-":
        print(json.dumps(result, indent=2, ensure_ascii=False))
    elif file is not None:
        write_json(result, file)


def fail(message: str, code: int = 2) -> NoReturn:
    """End with one sentence on stderr and an exit code."""
    console(stderr=True, soft_wrap=True).print(Text(" ".join(message.split()), style="bold red"))
    sys.exit(code)
