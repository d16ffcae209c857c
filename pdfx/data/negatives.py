"""How many hard negatives shards hold beside what a recipe asks for."""

from __future__ import annotations

from pdfx.config import DataSection
from pdfx.data.shards import ShardedDataset
from pdfx.data.storage.base import StorageError
from pdfx.data.training_sets import TrainingSet
from pdfx.host.reading import parse_json

_LOOKED_AT = 64
"""Shards of a data set whose statistics are read, so that many remote ones do not delay the start."""


def tell_hard_negatives(sets: list[TrainingSet], data: DataSection) -> list[str]:
    """Sentences about data sets that hold hard negatives which ``data.hard_negatives`` leaves out unasked, or fewer
    than it asks for."""
    unused, wanted, told = [], data.hard_negatives, []
    for own in sets:
        negatives, samples = count_hard_negatives(own.dataset)
        mean = negatives / samples if samples else 0
        if wanted is None and negatives:
            unused.append(f"{own.name} ({mean:.2g} per sample)")
        if wanted and samples and mean < wanted:
            share = f"{1 - mean / wanted:.0%} of their places are masked fillers"
            told.append(
                f"Warning: data.hard_negatives is {wanted}, but {own.name} holds {mean:.2g} per sample, so {share}."
            )
    if unused:
        shown = ", ".join(unused[:5]) + (f" and {len(unused) - 5} more data sets" if len(unused) > 5 else "")
        told.append(
            f"Warning: hard negatives are not used, though there are some in {shown}; set data.hard_negatives to the "
            "number to use per pair, or to 0."
        )
    return told


def count_hard_negatives(dataset: ShardedDataset) -> tuple[int, int]:
    """Hard negatives and samples of at most ``_LOOKED_AT`` shards, evenly chosen, by their statistics; those whose
    statistics cannot be read are left out."""
    entries = dataset.index.shards[:: -(-len(dataset.index.shards) // _LOOKED_AT) or 1]

    def count(entry) -> tuple[int, int]:
        try:
            return int(parse_json(dataset.storage.load(entry.stats_name, 1 << 20))["negatives_items"]), entry.samples
        except (StorageError, ValueError, TypeError, KeyError):
            return 0, 0

    counts = list(dataset.storage.map(count, entries))
    return sum(negatives for negatives, _ in counts), sum(samples for _, samples in counts)
