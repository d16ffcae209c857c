"""Describing what a directory of shards holds, as plain values and as tables for a console."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from data_tools.build.ordered_workers import WorkUnit, drawn_samples, share_out, work_units
from data_tools.inspect.measure import (
    CONTENTS,
    MEASURES,
    SIDES,
    UNDETERMINED,
    Tally,
    distinct_and_sharing,
    quantiles,
)
from pdfx.data.shards import ShardedDataset
from pdfx.host.console import ShowProgress

QUANTILES = {"minimum": 0, "median": 50, "p95": 95, "maximum": 100}
LANGUAGE_SAMPLES = 10_000
_COUNTS = ("shards", "samples", "bytes", "unusable", "without_query", "targets", "samples_sharing_target")
_FINGERPRINT_SHOWN = 12
_OVER_SAMPLES = ("samples_per_shard", "bytes_per_shard", "negatives_per_sample")
_NAMES_SHOWN = 8


def describe_shards(
    path: str | Path, progress: ShowProgress | None = None, workers: int = 1, language_samples: int = LANGUAGE_SAMPLES
) -> dict:
    """Counts and distributions, as plain values. They do not depend on ``workers``; about 40 bytes are held per sample.

    Args:
        progress: called with (samples done, samples in all).
        workers: processes that read.
        language_samples: samples, drawn evenly and always the same, whose texts' languages are guessed.

    Returns:
        ``shards``, ``samples``, ``bytes``, ``fingerprint``, ``samples_per_shard`` and ``bytes_per_shard`` (quantiles);
        ``unusable`` (samples that could not be read, which enter nothing below), ``without_query``,
        ``negatives_per_sample`` (quantiles); ``targets`` (distinct target_ids), ``samples_sharing_target`` (samples
        whose target_id another sample has too); ``duplicates`` (for queries, targets, pairs and pictures, by content:
        how many are ``distinct``, and how many are ``sharing`` theirs with another); ``language_samples``; and
        ``sides``: for each of query, target and negatives ``items``, ``text_only``, ``image_only``, ``text_and_image``,
        ``image_formats`` and ``languages`` (counts by name, the most frequent first), and the quantiles of
        ``MEASURES`` (texts over items with text, images over items with images; pixels and kilobytes as stored).
        Quantiles are None if there is nothing to count.

    Raises:
        UserError: the directory is not a complete directory of shards.
    """
    dataset = ShardedDataset(path)
    drawn = frozenset(drawn_samples(len(dataset), language_samples))
    total = Tally()
    for part, tally in share_out(_Reader(dataset, drawn), list(work_units(dataset.index)), workers):
        total.add(tally)
        if progress:
            progress(part.first + part.stop - part.start, len(dataset))
    target_ids = distinct_and_sharing(total.contents["target_ids"])
    return {
        "shards": len(dataset.shards),
        "samples": len(dataset),
        "bytes": sum(entry.bytes for entry in dataset.index.shards),
        "fingerprint": dataset.fingerprint,
        "samples_per_shard": quantiles(Counter(entry.samples for entry in dataset.index.shards), QUANTILES),
        "bytes_per_shard": quantiles(Counter(entry.bytes for entry in dataset.index.shards), QUANTILES),
        "unusable": total.counts["samples", "unusable", True],
        "without_query": total.counts["samples", "without_query", True],
        "negatives_per_sample": quantiles(total.of("samples", "negatives"), QUANTILES),
        "targets": target_ids["distinct"],
        "samples_sharing_target": target_ids["sharing"],
        "duplicates": {name: distinct_and_sharing(total.contents[name]) for name in CONTENTS},
        "language_samples": len(drawn),
        "sides": {side: _side_summary(total, side) for side in SIDES},
    }


@dataclass
class _Reader:
    """Counts one part; travels to worker processes."""

    dataset: ShardedDataset
    drawn: frozenset[int] = field(repr=False)

    def __call__(self, part: WorkUnit) -> Tally:
        shard, tally = self.dataset.shards[part.shard], Tally()
        for row in range(part.start, part.stop):
            tally.count(shard, row, with_language=part.first + row - part.start in self.drawn)
        shard.close()
        return tally


def _side_summary(tally: Tally, side: str) -> dict:
    kinds = tally.of(side, "kinds")
    return {
        "items": kinds.total(),
        **{kind: kinds[kind] for kind in ("text_only", "image_only", "text_and_image")},
        "image_formats": _by_frequency(tally.of(side, "formats")),
        "languages": _by_frequency(tally.of(side, "languages")),
        **{name: quantiles(tally.of(side, name), QUANTILES) for name in MEASURES},
    }


def _by_frequency(counts: Counter) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def description_tables(description: dict) -> Iterator[Table]:
    """What ``describe_shards`` gave: overview, distributions over shards and samples, duplicates, and one table per
    side that has items."""
    overview = Table(title="Shards", show_header=False)
    for name in _COUNTS:
        overview.add_row(_label(name), f"{description[name]:,}")
    overview.add_row("fingerprint", description["fingerprint"][:_FINGERPRINT_SHOWN])
    yield overview
    distributions = Table("", *QUANTILES, title="Shards and hard negatives")
    _add_quantiles(distributions, {name: description[name] for name in _OVER_SAMPLES})
    yield distributions
    duplicates = Table("", "distinct", "sharing content with another", title="Equal by content")
    for name, counts in description["duplicates"].items():
        if counts["distinct"]:
            duplicates.add_row(name, f"{counts['distinct']:,}", f"{counts['sharing']:,}")
    yield duplicates
    for side, summary in description["sides"].items():
        if summary["items"]:
            yield _side_table(side, summary, description)


def _side_table(side: str, summary: dict, description: dict) -> Table:
    title = (
        f"{side}: {summary['items']:,} items ({summary['text_only']:,} text, {summary['image_only']:,} image, "
        f"{summary['text_and_image']:,} both)"
    )
    table = Table("", *QUANTILES, title=title)
    _add_quantiles(table, {name: summary[name] for name in MEASURES})
    formats, languages, lines = summary["image_formats"], summary["languages"], []
    if formats:
        lines.append(f"formats: {_most_frequent(formats)}")
    if languages:
        lines.append(f"languages: {_most_frequent(languages)}")
        unclear = f"; {UNDETERMINED}: too short or too mixed to tell" if UNDETERMINED in languages else ""
        texts, samples = sum(languages.values()), description["language_samples"]
        lines.append(f"guessed from {texts:,} texts of {samples:,} samples{unclear}")
    table.caption = "\n".join(lines)
    return table


def _add_quantiles(table: Table, rows: dict[str, dict[str, int] | None]) -> None:
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in rows.items():
        if values is not None:
            table.add_row(_label(name), *(f"{value:,}" for value in values.values()))


def _most_frequent(counts: dict[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:_NAMES_SHOWN]]
    rest = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _label(name: str) -> str:
    return name.replace("_", " ")
