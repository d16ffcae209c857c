"""The commands ``pdfx shards``. Whatever is slow to import is imported inside the command that needs it, so that ``--help`` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pdfx.cli_shared import SHARDS_HELP, example, progress_bar

shards_app = typer.Typer(help="Build, check and describe directories of training samples.", no_args_is_help=True)


@shards_app.command(epilog=example("pdfx shards build records.jsonl --images pictures --out shards/train"))
def build(
    records: Annotated[Path, typer.Argument(metavar="RECORDS.jsonl", help="One sample per line; see docs/architecture.md.")],
    out: Annotated[Path, typer.Option(help="Directory to write; must be new or empty.")],
    images: Annotated[Path | None, typer.Option(help="Folder that image paths start from; the records' own by default.")] = None,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Samples of one tar file.")] = 1000,
) -> None:
    """Pack samples and their pictures into tar shards with an index and checksums."""
    from data_tools.build import build_shards

    with progress_bar() as bar:
        summary = build_shards(records, images if images is not None else records.parent, out, samples_per_shard, bar.counter("packing"))
    print(f"{out}: {summary.samples} samples in {summary.shards} shards, {summary.bytes} bytes, fingerprint {summary.fingerprint[:12]}")


@shards_app.command(epilog=example("pdfx shards check shards/train", "pdfx shards check shards/train --full"))
def check(
    shards: Annotated[Path, typer.Argument(help=SHARDS_HELP)],
    full: Annotated[bool, typer.Option("--full", help="Also read everything: checksums, keys, every record and picture.")] = False,
) -> None:
    """Look for damage: files and sizes, with --full also checksums, keys and every sample. Prints one sentence per problem and ends with 1 if there is any."""
    from data_tools.check import check_shards

    with progress_bar() as bar:
        problems = check_shards(shards, full, bar.counter("checking"))
    for problem in problems:
        print(problem)
    if problems:
        raise typer.Exit(1)
    print(f"{shards} is sound.")


@shards_app.command(epilog=example("pdfx shards describe shards/train"))
def describe(shards: Annotated[Path, typer.Argument(help=SHARDS_HELP)]) -> None:
    """Print counts and lengths of what the shards hold."""
    from data_tools.describe import describe_shards, description_tables

    with progress_bar() as bar:
        description = describe_shards(shards, bar.counter("reading"))
    for table in description_tables(description):
        Console().print(table)
