"""What the commands of every group share."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.text import Text

from pdfx.console import console

SHARDS_HELP = "Directory that 'pdfx shards build' wrote, or the URL of one (s3://..., https://...)."
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result to this file; '-' prints it instead of the rest.")]
WorkersOption = Annotated[int | None, typer.Option(min=0, help="Processes that share the work; one per core by default, at most 8.")]


def worker_count(wanted: int | None) -> int:
    """Processes that a command uses: as many as are wanted, or one per core that this process may use, at most 8."""
    return min(len(os.sched_getaffinity(0)), 8) if wanted is None else wanted


def example(*commands: str) -> str:
    """The epilog of a command's help."""
    return "[bold]Example[/bold]\n\n" + "\n\n".join(f"  {command}" for command in commands)


def progress_bar():
    from pdfx.progress import ProgressBar

    return ProgressBar()


def prints_json(file: Path | None) -> bool:
    """Whether ``--json -`` asks for the result on stdout. Raises UserError where ``file`` could not be written, for before the work."""
    from pdfx.files import require_folder

    if file is None or str(file) == "-":
        return file is not None
    require_folder(file)
    return False


def give_json(result: Any, file: Path | None) -> None:
    """Writes what ``--json`` asks for, if anything."""
    from pdfx.files import write_json

    if str(file) == "-":
        print(json.dumps(result, indent=2, ensure_ascii=False))
    elif file is not None:
        write_json(result, file)


def fail(message: str, code: int = 2) -> NoReturn:
    """End with one sentence on stderr and an exit code."""
    console(stderr=True, soft_wrap=True).print(Text(" ".join(message.split()), style="bold red"))
    sys.exit(code)
