"""The commands ``pdfx shards split`` and ``pdfx shards merge``."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from pdfx.cli.build import one_sentence_when_interrupted, parse_bytes
from pdfx.cli.shared import SHARDS_HELP, JsonOption, give_json, prints_json, progress_bar

SPLIT_EXAMPLES = (
    "pdfx shards split shards/all --out shards/train=0.9 --out shards/test=0.1",
    "pdfx shards split shards/all --out shards/a=1/3 --out shards/b=1/3 --out shards/c=1/3 --by key --seed 7",
)
MERGE_EXAMPLES = (
    "pdfx shards merge shards/a shards/b --out shards/all",
    "pdfx shards merge shards/a shards/b --out shards/all --link",
)
_NOTHING_LEFT = "nothing is left behind"


class By(str, Enum):
    target = "target"
    key = "key"


def split(
    shards: Annotated[str, typer.Argument(help=SHARDS_HELP)],
    out: Annotated[
        list[str],
        typer.Option(
            metavar="DIRECTORY=SHARE", help="A part to write, new or empty, and its share; the shares sum to 1."
        ),
    ],
    by: Annotated[
        By,
        typer.Option(
            help="'target': samples with the same target_id stay together. 'key': each sample goes its own way."
        ),
    ] = By.target,
    seed: Annotated[int, typer.Option(help="Another seed gives other parts.")] = 0,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Most samples of one tar file.")] = 10_000,
    shard_bytes: Annotated[
        int, typer.Option(parser=parse_bytes, metavar="SIZE", help="Most bytes of one tar file, such as 500MB or 1GiB.")
    ] = "1GB",
    json_file: JsonOption = None,
) -> None:
    """Split shards into parts, for training and test say, that have no target in common. The same shards, shares and
    seed give the same parts.

    Ends with 0 if the parts are written, 2 on a mistake of the user, and 75 where it was interrupted; then, nothing
    is left behind.
    """
    from data_tools.rearrange.split import Share, SplitSettings, split_shards

    quiet = prints_json(json_file)
    settings = SplitSettings(tuple(Share.parse(part) for part in out), seed, by.value, samples_per_shard, shard_bytes)
    with one_sentence_when_interrupted(_NOTHING_LEFT), progress_bar() as bar:
        parts = split_shards(shards, settings, bar.counter("splitting"))
    give_json([{**_plain(part.written), "targets": part.targets} for part in parts], json_file)
    if not quiet:
        samples = sum(part.written.samples for part in parts)
        for part in parts:
            print(
                f"{_line(part.written)}; {part.written.samples / samples:.2%} of all samples, with "
                f"{part.targets} targets"
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
            "--prefix-keys", help="Write '0-', '1-', ... before the keys, by directory, where they are not unique."
        ),
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Make one directory of shards of several. Keys must be unique over all of them.

    Ends with 0 if the shards are written, 2 on a mistake of the user, and 75 where it was interrupted; then, nothing
    is left behind.
    """
    from data_tools.rearrange.merge import merge_shards

    quiet = prints_json(json_file)
    with one_sentence_when_interrupted(_NOTHING_LEFT), progress_bar() as bar:
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
