"""What the commands of every group share."""

from __future__ import annotations

SHARDS_HELP = "Directory that 'pdfx shards build' wrote."


def example(*commands: str) -> str:
    """The epilog of a command's help."""
    return "[bold]Example[/bold]\n\n" + "\n\n".join(f"  {command}" for command in commands)


def progress_bar():
    from pdfx.progress import ProgressBar

    return ProgressBar()
