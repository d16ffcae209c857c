"""The command ``pdfx shards build``."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pdfx.cli.shared import (
    SHARD_BYTES,
    BytesOption,
    JsonOption,
    ProgressBar,
    SamplesOption,
    WorkersOption,
    fail,
    give_json,
    prints_json,
    worker_count,
)
from pdfx.errors import UserError

if TYPE_CHECKING:
    from data_tools.build.builder import BuildSummary
    from data_tools.build.settings import BuildSettings

EXAMPLES = (
    "pdfx shards build records.jsonl --images pictures --out shards/train",
    "pdfx shards build captions.parquet --format table --option query.text=caption --option target.images=image "
    "--out shards/train",
    "pdfx shards build queries.jsonl --option corpus=corpus.jsonl --out shards/train",
    "pdfx shards build records.jsonl --out shards/train --resize 768 --image-format jpeg --quality 90 --shard-bytes "
    "500MB --workers 16",
    "pdfx shards build records.jsonl --out shards/train --deduplicate --evaluation shards/test --drop-leaked",
)
TOO_MANY_BAD_RECORDS, INTERRUPTED = 1, 75


def parse_option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"The option '{text}' has no value; write it as NAME=VALUE.")
    return name.strip(), value


def parse_options(texts: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in map(parse_option, texts):
        if options.setdefault(name, value) != value:
            raise UserError(f"The option '{name}' is given twice, as '{options[name]}' and as '{value}'; give it once.")
    return options


@contextmanager
def one_sentence_when_interrupted(what_now: str) -> Iterator[None]:
    """Ctrl-C and a batch system's SIGTERM end with one sentence; ``what_now`` is its end."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        fail(f"Interrupted; {what_now}.", INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


SourceArgument = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE", help="File or directory of records, in one of the formats that 'pdfx shards formats' lists."
    ),
]
OutOption = Annotated[
    Path, typer.Option(help="Directory to write; new, empty, or that of the same build, which then resumes.")
]
FormatOption = Annotated[
    str,
    typer.Option(
        help="Format of SOURCE: jsonl (the project's own) or another one; 'auto' detects it from what SOURCE holds."
    ),
]
FormatOptions = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="An option of the format that 'pdfx shards formats FORMAT' lists."),
]
ImagesOption = Annotated[
    Path | None, typer.Option(help="Folder, or tar, that image paths start from; SOURCE's own folder by default.")
]
ResizeOption = Annotated[
    int | None, typer.Option(min=1, help="Shrink pictures whose longer side has more pixels to so many.")
]
ImageFormatOption = Annotated[
    Literal["jpeg", "webp", "png"] | None,
    typer.Option(help="Encode every picture again; by default only those that are shrunk are."),
]
QualityOption = Annotated[int, typer.Option(min=1, max=100, help="Of JPEG and WebP pictures that are encoded again.")]
DeduplicateOption = Annotated[
    bool, typer.Option("--deduplicate", help="Leave out records whose query and target are those of an earlier one.")
]
EvaluationOption = Annotated[
    list[str] | None,
    typer.Option(metavar="SHARDS", help="Shards to report leakage against; can be given several times."),
]
LeakOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[query|target|image]",
        help="What is compared; all three by default. Leave 'target' out if targets are labels.",
    ),
]
DropOption = Annotated[
    bool, typer.Option("--drop-leaked", help="Leave out the records that share something with them.")
]
BadShareOption = Annotated[
    float, typer.Option(min=0, max=1, help="Stop if more of the records cannot be used; one is forgiven, unless 0.")
]
PixelsOption = Annotated[
    int | None, typer.Option(min=1, help="Refuse pictures of more pixels; of more than 89 million by default.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Delete an earlier build in the directory and start over.")
]


def build(
    source: SourceArgument,
    out: OutOption,
    format: FormatOption = "auto",
    option: FormatOptions = None,
    images: ImagesOption = None,
    samples_per_shard: SamplesOption = 10_000,
    shard_bytes: BytesOption = SHARD_BYTES,
    resize: ResizeOption = None,
    image_format: ImageFormatOption = None,
    quality: QualityOption = 90,
    deduplicate: DeduplicateOption = False,
    evaluation: EvaluationOption = None,
    leak: LeakOption = None,
    drop_leaked: DropOption = False,
    max_bad_share: BadShareOption = 0.01,
    max_image_pixels: PixelsOption = None,
    workers: WorkersOption = None,
    overwrite: OverwriteOption = False,
    json_file: JsonOption = None,
) -> None:
    """Pack records and their pictures into tar shards with an index and checksums.

    Stopped at any moment, the same command resumes where it stopped, to the same bytes. Records that cannot be used go
    to quarantine.jsonl with the reason.

    Ends with 0 if the shards are built, 1 if too many records cannot be used, 2 on a mistake of the user, and 75
    if it was interrupted.
    """
    from data_tools.build.settings import LEAKS, BuildSettings, Encoding

    quiet = prints_json(json_file)
    settings = BuildSettings(
        samples_per_shard=samples_per_shard,
        shard_bytes=shard_bytes,
        encoding=Encoding(resize, image_format, quality),
        max_image_pixels=max_image_pixels or BuildSettings.max_image_pixels,
        deduplicate=deduplicate,
        evaluation=tuple(evaluation or ()),
        leaks=tuple(leak or LEAKS),
        drop_leaked=drop_leaked,
        max_bad_share=max_bad_share,
        workers=worker_count(workers),
        overwrite=overwrite,
    )
    summary = _build(source, format, parse_options(option or []), images, out, settings)
    give_json({"shards": str(out), **asdict(summary)}, json_file)
    if not quiet:
        print("\n".join(_summary_lines(out, summary, drop_leaked)))


def _build(
    source: Path, format: str, options: dict[str, str], images: Path | None, out: Path, settings: BuildSettings
) -> BuildSummary:
    from data_tools.build.assembly import TooManyBadRecords
    from data_tools.build.builder import build as build_shards
    from data_tools.sources.registry import open_source

    with one_sentence_when_interrupted("the same command resumes where it stopped"), ProgressBar() as bar:
        records = open_source(format, source, options)
        if images is not None and not images.exists():
            raise UserError(f"There is no image folder {images}; name it with --images.")
        folder = images if images is not None else source if source.is_dir() else source.parent
        counters = bar.counter("packing"), bar.counter("reading evaluation sets")
        try:
            return build_shards(records, folder, out, settings, *counters)
        except TooManyBadRecords as error:
            fail(str(error), TOO_MANY_BAD_RECORDS)


def _summary_lines(out: Path, summary: BuildSummary, drop_leaked: bool) -> Iterator[str]:
    from data_tools.build.assembly import LEFT_OUT
    from data_tools.build.builder import counts_by_kind

    state = " was complete already" if summary.was_finished else ""
    yield (
        f"{out}{state}: {summary.samples} samples in {summary.shards} shards, {summary.bytes} bytes, fingerprint "
        f"{summary.fingerprint[:12]}"
    )
    bad = {kind: count for kind, count in summary.rejected.items() if kind not in LEFT_OUT}
    left_out = {kind: count for kind, count in summary.rejected.items() if kind in LEFT_OUT}
    parts = [
        (summary.samples, "samples", {}),
        (sum(bad.values()), "that cannot be used", bad),
        (sum(left_out.values()), "left out on purpose", left_out),
    ]
    counted = [f"{count} {what}" + (f" ({counts_by_kind(kinds)})" if kinds else "") for count, what, kinds in parts]
    yield f"{summary.records} records: {', '.join(counted)}." + (
        f" {out / 'quarantine.jsonl'} lists those that are not samples." if summary.rejected else ""
    )
    yield from summary.notes
    if summary.leaks:
        kinds = {kind: count for kind, count in summary.leaks.items() if kind != "records"}
        fate = "they are left out" if drop_leaked else "they are kept, leave them out with --drop-leaked"
        yield (
            f"{summary.leaks['records']} records share something with an evaluation set ({counts_by_kind(kinds)}); "
            f"{out / 'leakage.jsonl'} lists them; {fate}."
        )
