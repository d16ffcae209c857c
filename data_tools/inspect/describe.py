"""Describing what a directory of shards holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.build.builder import Progress
from data_tools.build.work_units import Part, drawn_samples, parts_of, share_out
from data_tools.inspect.measure import CONTENTS, MEASURES, SideTally, Tally, distinct_and_sharing, quantiles
from pdfx.data.shards import ShardedDataset

QUANTILES = {"minimum": 0, "median": 50, "p95": 95, "maximum": 100}
LANGUAGE_SAMPLES = 10_000


def describe_shards(
    path: str | Path, progress: Progress | None = None, workers: int = 1, language_samples: int = LANGUAGE_SAMPLES
) -> dict:
    """Counts and distributions, as plain values. They do not depend on ``workers``; about 40 bytes are held per sample.

    Args:
        progress: called with (samples done, samples in all).
        workers: processes that read.
        language_samples: samples, drawn evenly and always the same, whose texts' languages are guessed.

    Returns:
        ``shards``, ``samples``, ``bytes``, ``fingerprint``, ``samples_per_shard`` and ``bytes_per_shard`` (quantiles);
        ``unusable`` (samples that could not be read, and enter nothing below), ``without_query``,
        ``negatives_per_sample`` (quantiles); ``targets`` (distinct target_ids) and ``samples_sharing_target`` (samples
        whose target_id another sample bears too);
        ``duplicates``: for queries, targets, pairs and pictures, compared by content, how many ``distinct`` ones there
            are and how many are
        ``sharing`` theirs with another;
        ``language_samples`` (how many samples the languages were looked for in); and ``sides``: for each of query,
        target and negatives ``items``, ``text_only``, ``image_only``, ``text_and_image``, ``image_formats`` and
        ``languages`` (counts by name, the most frequent first), and the quantiles of ``text_characters`` and
        ``text_words`` (over items with text), ``images_per_item`` (over items with images), ``image_width``,
        ``image_height`` in pixels and ``image_kilobytes``, all as stored. Quantiles are null where there is nothing to
        count.

    Raises:
        UserError: the directory is no complete directory of shards.
    """
    dataset = ShardedDataset(path)
    drawn = frozenset(drawn_samples(len(dataset), language_samples))
    total = Tally()
    for part, tally in share_out(_Reader(dataset, drawn), list(parts_of(dataset.index)), workers):
        total.add(tally)
        if progress:
            progress(part.first + part.stop - part.start, len(dataset))
    target_ids = distinct_and_sharing(total.target_ids)
    return {
        "shards": len(dataset.shards),
        "samples": len(dataset),
        "bytes": sum(entry.bytes for entry in dataset.index.shards),
        "fingerprint": dataset.fingerprint,
        "samples_per_shard": quantiles(Counter(entry.samples for entry in dataset.index.shards), QUANTILES),
        "bytes_per_shard": quantiles(Counter(entry.bytes for entry in dataset.index.shards), QUANTILES),
        "unusable": total.unusable,
        "without_query": total.without_query,
        "negatives_per_sample": quantiles(total.negatives, QUANTILES),
        "targets": target_ids["distinct"],
        "samples_sharing_target": target_ids["sharing"],
        "duplicates": {name: distinct_and_sharing(total.contents[name]) for name in CONTENTS},
        "language_samples": len(drawn),
        "sides": {side: _side_summary(tally) for side, tally in total.sides.items()},
    }


@dataclass
class _Reader:
    """Counts one part; travels to worker processes."""

    dataset: ShardedDataset
    drawn: frozenset[int] = field(repr=False)

    def __call__(self, part: Part) -> Tally:
        shard, tally = self.dataset.shards[part.shard], Tally()
        for row in range(part.start, part.stop):
            tally.count(shard, row, with_language=part.first + row - part.start in self.drawn)
        shard.close()
        return tally


def _side_summary(tally: SideTally) -> dict:
    counts = {kind: tally.kinds[kind] for kind in ("text_only", "image_only", "text_and_image")}
    named = {"image_formats": _by_frequency(tally.formats), "languages": _by_frequency(tally.languages)}
    return {
        "items": tally.kinds.total(),
        **counts,
        **named,
        **{name: quantiles(tally.measures[name], QUANTILES) for name in MEASURES},
    }


def _by_frequency(counts: Counter) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
