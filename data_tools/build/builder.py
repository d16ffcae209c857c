"""Building a directory of tar shards from the records of any source. A build that is stopped at any moment resumes
where it stopped, to the same bytes."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path

from data_tools.build.assembly import QUARANTINE_NAME, Assembly, first_reasons
from data_tools.build.deduplicate import EvaluationSet
from data_tools.build.journal import JOURNAL_NAME, START_OVER, Journal, chained
from data_tools.build.ordered_workers import run_in_order
from data_tools.build.pack import Packer
from data_tools.build.settings import BuildSettings
from data_tools.sources.base import Source, SourceRecord
from data_tools.sources.jsonl import JsonlSource
from pdfx.data.picture_folder import PictureFolder
from pdfx.data.schema import INDEX_NAME, ShardIndex
from pdfx.data.shard import Shard
from pdfx.data.shards import read_index
from pdfx.errors import UserError
from pdfx.host.console import ShowProgress
from pdfx.model.pictures import MAX_IMAGE_PIXELS

__all__ = ["BuildSettings", "BuildSummary", "build", "build_shards"]


_BLOCK = 8
"""Records that a worker is given at a time: enough to make up for the way there and back, and few enough to hold many
blocks of large pictures."""

_LOOKED_OVER = 100_000
"""Records that are looked at for the message that too many are bad."""
_SHARD_FILE = re.compile(r"([0-9]{5,})(\.tar|\.idx\.npy|_stats\.json)")
_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class BuildSummary:
    """What a finished build holds.

    Attributes:
        bytes: of the tars.
        rejected: records that gave no sample, by kind; ``quarantine.jsonl`` lists them.
        leaks: records that share something with an evaluation set, by what they share, and all "records";
            ``leakage.jsonl`` lists them.
        was_finished: nothing was left to do.
        records: of the source: as many as samples and ``rejected`` together.
        notes: sentences on what of the source is not used.
    """

    shards: int
    samples: int
    bytes: int
    fingerprint: str
    rejected: dict[str, int] = field(default_factory=dict)
    leaks: dict[str, int] = field(default_factory=dict)
    was_finished: bool = False
    records: int = 0
    notes: list[str] = field(default_factory=list)


def build_shards(
    records_path: str | Path,
    images_dir: str | Path,
    out_dir: str | Path,
    samples_per_shard: int = BuildSettings.samples_per_shard,
    progress: ShowProgress | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    **settings,
) -> BuildSummary:
    """``build`` for a JSONL file, in this process; ``settings`` are further ones of ``BuildSettings``."""
    chosen = BuildSettings(samples_per_shard=samples_per_shard, max_image_pixels=max_image_pixels, **settings)
    return build(JsonlSource(records_path), Path(images_dir), Path(out_dir), chosen, progress)


def build(
    source: Source,
    images: Path | None,
    out: Path,
    settings: BuildSettings | None = None,
    progress: ShowProgress | None = None,
    evaluation_progress: ShowProgress | None = None,
) -> BuildSummary:
    """Pack records and their images into shards. The same input gives the same bytes, whenever and by however many
    workers it is built.

    The index is written last, so a directory without one is unfinished; the same call resumes it. Records that
    cannot be used are written to a quarantine file.

    Args:
        images: the folder, or tar, that pictures are looked up in which the source does not hold itself.
        out: a directory that is new, empty, or that of the same build.
        progress: called with the records dealt with and those of the source.
        evaluation_progress: called with the samples read of an evaluation set, and those that it holds.

    Raises:
        UserError: there are no records, or no usable ones, or ``out`` holds something else.
        TooManyBadRecords: more than ``settings.max_bad_share`` of the records cannot be used.
    """
    settings = settings or BuildSettings()
    _require_own(out, settings.overwrite)
    records = source.records()
    first = next(records, None)
    if first is None:
        names = ", ".join(file.partition(": ")[0] for file in source.identity().get("files", []))
        raise UserError(f"There are no records in {names or 'the source'}.")
    evaluation = [EvaluationSet(path, settings.leaks, evaluation_progress) for path in settings.evaluation]
    identity = {
        "source": source.identity(),
        "images": os.path.abspath(images) if images is not None else None,
        "settings": settings.identity(),
        "evaluation": [of.fingerprint for of in evaluation],
    }
    folder = PictureFolder(images, settings.max_image_pixels)
    packer = Packer(folder, settings.encoding, settings.max_image_pixels, with_parts=bool(evaluation))
    out.mkdir(parents=True, exist_ok=True)
    with _out_of_space_told(out), Journal(out, identity, settings.overwrite) as journal:
        _remove_unfinished(out, journal)
        _require_same_pictures(source, packer, journal)
        was_finished = journal.is_at_end and (out / INDEX_NAME).exists()
        if was_finished:
            index = read_index(out)
        else:
            index = _run(source, chain([first], records), packer, out, settings, journal, evaluation, progress)
        last = journal.last
        accounted = index.samples + sum(last.rejected.values())
        if accounted != last.position:
            raise UserError(
                f"{out} accounts for {accounted} of its {last.position} records: it is damaged; {START_OVER}."
            )
        journal.tidy()
        counts = len(index.shards), index.samples, sum(entry.bytes for entry in index.shards), index.fingerprint
        return BuildSummary(*counts, last.rejected, last.leaks, was_finished, last.position, source.notes())


def _run(
    source: Source,
    records: Iterator[SourceRecord],
    packer: Packer,
    out: Path,
    settings: BuildSettings,
    journal: Journal,
    evaluation: list[EvaluationSet],
    progress: ShowProgress | None,
) -> ShardIndex:
    total = source.total()
    overview = partial(_overview, source, packer)
    with Assembly(out, settings, journal, evaluation, total, overview) as assembly:
        if progress:
            progress(assembly.position, total)
        rest = source.records(assembly.position) if assembly.position else records
        blocks = _blocks(rest, assembly.position)
        with closing(run_in_order(packer, blocks, settings.workers if settings.workers > 1 else 0)) as results:
            for block, packed in results:
                for (_, record), result in zip(block, packed, strict=True):
                    assembly.take(record, result)
                    if progress:
                        progress(assembly.position, total)
        if total not in (None, assembly.position):
            raise UserError(
                f"The source had {total} records when they were counted and {assembly.position} when they were read; "
                f"{START_OVER}."
            )
        index = assembly.finish()
        if index is None:
            reasons = f"{overview(assembly.rejected)} {first_reasons(out / QUARANTINE_NAME)}".strip()
            raise UserError(f"None of the {assembly.position} records gives a sample. {reasons}")
        return index


def _blocks(records: Iterator[SourceRecord], start: int) -> Iterator[list[tuple[int, SourceRecord]]]:
    numbered = enumerate(records, start)
    while block := list(islice(numbered, _BLOCK)):
        yield block


def _require_own(out: Path, overwrite: bool) -> None:
    """Raises UserError if ``out`` holds what no build left there."""
    if not out.exists() or (out / JOURNAL_NAME).is_file():
        return
    if not out.is_dir() or any(out.iterdir()):
        if overwrite and (out / INDEX_NAME).exists():
            read_index(out)
            return
        raise UserError(f"{out} is not an empty directory; delete it or build into another one.")


def _require_same_pictures(source: Source, packer: Packer, journal: Journal) -> None:
    """Raises UserError if the picture files of records that are dealt with are not those of then."""
    position, stamp, records = 0, 0, source.records()
    for step in journal.steps if journal.last.stamp else []:
        names = []
        for record in islice(records, step.position - position):
            stamp = chained(stamp, packer.stamp(record))
            names += packer.outside(record)
        if stamp != step.stamp:
            newest = max(names, key=lambda name: packer.folder.stamp(name).partition(" changed ")[2], default="none")
            what = (
                f"A picture of the records {position + 1} to {step.position} was edited, replaced, added or "
                "removed after the build read it"
            )
            raise UserError(f"{what} (that with the latest time is {packer.folder.describe(newest)}); {START_OVER}.")
        position = step.position


def _remove_unfinished(out: Path, journal: Journal) -> None:
    """Delete what does not belong to the journal's steps: files that a kill left, or those of a build that is given up.
    All shards must be whole."""
    if not journal.is_at_end:
        (out / INDEX_NAME).unlink(missing_ok=True)
    finished = {entry.name.removesuffix(".tar") for entry in journal.shards}
    for path in out.iterdir():
        match = _SHARD_FILE.fullmatch(path.name)
        if match and match[1] not in finished:
            path.unlink()
    for entry in journal.shards:
        Shard(out, entry).check_sizes()


def _overview(source: Source, packer: Packer, rejected: Mapping[str, int]) -> str:
    """What helps if many records cannot be used: how many of each kind there are, also among those that were not read
    yet."""
    kinds = [packer.glance(record) for record in islice(source.records(), _LOOKED_OVER)]
    found, records = Counter(filter(None, kinds)), len(kinds)
    place = os.path.abspath(packer.folder.root or "")
    sentences = [
        f"By kind: {counts_by_kind(rejected)}.",
        f"A look at {records} records, not into their pictures, finds: {counts_by_kind(found)}.",
    ]
    if rejected.get("missing image"):
        sentences.append(f"Pictures are looked up in {place}; name another folder with --images (images).")
    return " ".join([*sentences, *source.notes()])


def counts_by_kind(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "nothing"


@contextmanager
def _out_of_space_told(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _OUT_OF_SPACE:
            raise
        raise UserError(
            f"{error.filename or out} cannot be written ({error.strerror}); make room, and the same command resumes "
            "where it stopped."
        ) from None
