"""The command ``pdfx shards formats``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from pdfx.console import console

FORMATS_EXAMPLES = ("pdfx shards formats", "pdfx shards formats tevatron")


def formats(name: Annotated[str | None, typer.Argument(metavar="[FORMAT]", help="Show the options of this one.")] = None) -> None:
    """List the formats that shards can be built from, or the options of one."""
    from data_tools.sources.registry import FORMATS, find_format

    out = console()
    if name is None:
        out.print(_table("format", "what SOURCE is", {known: format.summary for known, format in FORMATS.items()}))
        return
    format = find_format(name)
    out.print(f"{name}: {format.summary}")
    if format.options:
        out.print(_table("--option", "meaning", {f"{option}=": given.help for option, given in format.options.items()}))


def _table(left: str, right: str, rows: dict[str, str]) -> Table:
    table = Table(left, right)
    for name, meaning in rows.items():
        table.add_row(name, meaning)
    return table
