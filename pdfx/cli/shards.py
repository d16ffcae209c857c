"""The commands ``pdfx shards``. They import what is slow themselves, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from pdfx.cli.build import EXAMPLES, build, one_sentence_when_interrupted
from pdfx.cli.shared import (
    SHARD_BYTES,
    BytesOption,
    JsonOption,
    ProgressBar,
    SamplesOption,
    ShardsArgument,
    WorkersOption,
    example,
    give_json,
    prints_json,
    worker_count,
)
from pdfx.errors import UserError
from pdfx.host.console import console
from pdfx.host.files import require_folder

_NOTHING_LEFT = "nothing is left behind"

shards_app = typer.Typer(help="Build, check, describe, split and merge directories of samples.", no_args_is_help=True)
shards_app.command(epilog=example(*EXAMPLES))(build)


@shards_app.command(epilog=example("pdfx shards formats", "pdfx shards formats tevatron"))
def formats(
    name: Annotated[str | None, typer.Argument(metavar="[FORMAT]", help="Show the options of this one.")] = None,
) -> None:
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


@shards_app.command(
    epilog=example(
        "pdfx shards check shards/train",
        "pdfx shards check shards/train --full --workers 8 --json problems.json",
        "pdfx shards check shards/train --full --processor Qwen2-VL-2B-Instruct",
    )
)
def check(
    shards: ShardsArgument,
    full: Annotated[
        bool, typer.Option("--full", help="Also read everything: checksums, offsets, keys, every record and picture.")
    ] = False,
    processor: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="With --full: also run this model's processor on every sample.")
    ] = None,
    workers: WorkersOption = None,
    json_file: JsonOption = None,
) -> None:
    """Look for damage and print one sentence per problem. Quick by default: index, sizes of files, offsets, statistics,
    remains of unfinished builds.

    What a model's processor refuses (such as pictures of a ratio over 200:1) is found with --processor.

    Ends with 0 if the shards are sound, 1 if there are problems, and 2 on a mistake of the command line.
    """
    from data_tools.inspect.check import check_shards

    quiet, of_model = prints_json(json_file), None
    if processor is not None:
        from pdfx.embedder.exports import load_processor

        if not full:
            raise UserError("--processor looks at every sample, so it needs --full as well.")
        of_model = load_processor(processor)
    with ProgressBar() as bar:
        problems = check_shards(
            shards, full, bar.counter("checking"), workers=worker_count(workers), processor=of_model
        )
    give_json({"shards": shards, "full": full, "sound": not problems, "problems": problems}, json_file)
    if not quiet:
        print("\n".join(problems) or f"{shards} is sound.")
    if problems:
        raise typer.Exit(1)


@shards_app.command(
    epilog=example(
        "pdfx shards describe shards/train",
        "pdfx shards describe shards/train --json description.json --contact-sheet pairs.html",
    )
)
def describe(
    shards: ShardsArgument,
    workers: WorkersOption = None,
    json_file: JsonOption = None,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Also write a page with some of the pairs: their pictures and texts."),
    ] = None,
    pairs: Annotated[
        int, typer.Option(min=1, max=500, help="Pairs on the contact sheet, drawn evenly over the shards.")
    ] = 24,
) -> None:
    """Print what the shards hold: counts, lengths, sizes of pictures, languages, and what is equal by content."""
    from data_tools.inspect.contact_sheet import write_contact_sheet
    from data_tools.inspect.describe import describe_shards, description_tables

    quiet = prints_json(json_file)
    if contact_sheet is None and pairs != 24:
        raise UserError("--pairs is of the contact sheet; say where that goes with --contact-sheet FILE.html.")
    if contact_sheet is not None:
        require_folder(contact_sheet)
    with ProgressBar() as bar:
        if contact_sheet is not None:
            shown = write_contact_sheet(shards, contact_sheet, pairs, bar.counter("drawing"))
        description = describe_shards(shards, bar.counter("reading"), worker_count(workers))
    give_json(description, json_file)
    if quiet:
        return
    for table in description_tables(description):
        console().print(table)
    if contact_sheet is not None:
        print(f"{contact_sheet}: {shown} samples")


@shards_app.command(
    epilog=example(
        "pdfx shards split shards/all --out shards/train=0.9 --out shards/test=0.1",
        "pdfx shards split shards/all --out shards/a=1/3 --out shards/b=1/3 --out shards/c=1/3 --by key --seed 7",
    )
)
def split(
    shards: ShardsArgument,
    out: Annotated[
        list[str],
        typer.Option(
            metavar="DIRECTORY=SHARE", help="A part to write, new or empty, and its share; the shares sum to 1."
        ),
    ],
    by: Annotated[
        Literal["target", "key"],
        typer.Option(
            help="'target': samples with the same target_id stay together. 'key': each sample goes its own way."
        ),
    ] = "target",
    seed: Annotated[int, typer.Option(help="Another seed gives other parts.")] = 0,
    samples_per_shard: SamplesOption = 10_000,
    shard_bytes: BytesOption = SHARD_BYTES,
    json_file: JsonOption = None,
) -> None:
    """Split shards into parts, for training and test say, that have no target in common. The same shards, shares and
    seed give the same parts.

    Ends with 0 if the parts are written, 2 on a mistake of the user, and 75 if it was interrupted; then, nothing
    is left behind.
    """
    from data_tools.rearrange.split import Share, SplitSettings, split_shards

    quiet = prints_json(json_file)
    settings = SplitSettings(tuple(Share.parse(part) for part in out), seed, by, samples_per_shard, shard_bytes)
    with one_sentence_when_interrupted(_NOTHING_LEFT), ProgressBar() as bar:
        parts = split_shards(shards, settings, bar.counter("splitting"))
    give_json([{**_plain(part.written), "targets": part.targets} for part in parts], json_file)
    if not quiet:
        samples = sum(part.written.samples for part in parts)
        for part in parts:
            print(
                f"{_line(part.written)}; {part.written.samples / samples:.2%} of all samples, with "
                f"{part.targets} targets"
            )


@shards_app.command(
    epilog=example(
        "pdfx shards merge shards/a shards/b --out shards/all",
        "pdfx shards merge shards/a shards/b --out shards/all --link",
    )
)
def merge(
    shards: Annotated[
        list[str], typer.Argument(help="Directories of shards, in the order that their samples will have.")
    ],
    out: Annotated[Path, typer.Option(help="Directory to write; must be new or empty.")],
    link: Annotated[
        bool,
        typer.Option(
            "--link", help="Hard links in place of copies: they take no room, but both directories share the files."
        ),
    ] = False,
    prefix_keys: Annotated[
        bool,
        typer.Option(
            "--prefix-keys", help="Write '0-', '1-', ... before the keys, by directory, if they are not unique."
        ),
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Make one directory of shards of several. Keys must be unique over all of them.

    Ends with 0 if the shards are written, 2 on a mistake of the user, and 75 if it was interrupted; then, nothing
    is left behind.
    """
    from data_tools.rearrange.merge import merge_shards

    quiet = prints_json(json_file)
    with one_sentence_when_interrupted(_NOTHING_LEFT), ProgressBar() as bar:
        written = merge_shards(shards, out, link, prefix_keys, bar.counter("reading keys"), bar.counter("writing"))
    give_json(_plain(written), json_file)
    if not quiet:
        print(_line(written))


def _plain(written) -> dict:
    return {**asdict(written), "path": str(written.path)}


def _line(written) -> str:
    return (
        f"{written.path}: {written.samples} samples in {written.shards} shards, {written.bytes} bytes, "
        f"fingerprint {written.fingerprint[:12]}"
    )
