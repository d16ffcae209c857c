"""A description of shards as tables for a console."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from data_tools.inspect.describe import QUANTILES
from data_tools.inspect.languages import UNDETERMINED

_COUNTS = ("shards", "samples", "bytes", "unusable", "without_query", "targets", "samples_sharing_target")
_FINGERPRINT_SHOWN = 12
_OVER_SAMPLES = ("samples_per_shard", "bytes_per_shard", "negatives_per_sample")
_NAMES_SHOWN = 8


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
    _add_quantiles(
        table,
        {
            name: value
            for name, value in summary.items()
            if name not in ("image_formats", "languages") and isinstance(value, dict)
        },
    )
    lines = []
    if summary["image_formats"]:
        lines.append(f"formats: {_most_frequent(summary['image_formats'])}")
    if summary["languages"]:
        lines.append(f"languages: {_most_frequent(summary['languages'])}")
        looked_at = (
            f"guessed from {sum(summary['languages'].values()):,} texts of {description['language_samples']:,} samples"
        )
        lines.append(
            looked_at
            + (f"; {UNDETERMINED}: too short or too mixed to tell" if UNDETERMINED in summary["languages"] else "")
        )
    table.caption = "\n".join(lines)
    return table


def _add_quantiles(table: Table, rows: dict[str, dict[str, int] | None]) -> None:
    for column in table.columns[1:]:
        column.justify = "right"
    for name, quantiles in rows.items():
        if quantiles is not None:
            table.add_row(_label(name), *(f"{value:,}" for value in quantiles.values()))


def _most_frequent(counts: dict[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:_NAMES_SHOWN]]
    rest = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _label(name: str) -> str:
    return name.replace("_", " ")
