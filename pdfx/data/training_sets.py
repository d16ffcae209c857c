"""The data sets of a recipe, opened, and the one sequence that is made of them."""

from __future__ import annotations

from dataclasses import dataclass

from pdfx.config import DataSection
from pdfx.data.order import CanonicalOrder, Mixture, Start, quotas
from pdfx.data.shards import ShardedDataset
from pdfx.data.storage.base import Reading, StorageError
from pdfx.data.storage.cache import CACHE_USE
from pdfx.errors import UserError
from pdfx.host.reading import parse_json

_LOOKED_AT = 64
"""Shards of a data set whose statistics are read, so that many remote ones do not delay the start."""


@dataclass(frozen=True)
class TrainingSet:
    """A data set with the name that reports and checkpoints give it."""

    name: str
    dataset: ShardedDataset


def open_training_sets(data: DataSection) -> list[TrainingSet]:
    """Open the data sets of ``data.train``.

    Raises:
        UserError: shards are missing or incomplete, empty, or hold targets without queries.
    """
    sets = []
    for section in data.training_sets():
        dataset = ShardedDataset(section.path, data.max_image_pixels, Reading.of(data))
        if len(dataset) == 0:
            raise UserError(f"The shards in {section.path} hold no samples.")
        if dataset.index.targets_only:
            raise UserError(
                f"Of the {len(dataset)} samples in {section.path}, {dataset.index.targets_only} have no query, so "
                "these shards are for evaluation; train on shards that were built without such records."
            )
        sets.append(TrainingSet(section.name or section.path, dataset))
    _require_room(sets, data)
    return sets


def _require_room(sets: list[TrainingSet], data: DataSection) -> None:
    """A cache smaller than the windows, within which the order jumps, would fetch every span again and again."""
    if data.cache_dir is None:
        return
    window = data.window_spans * data.span_samples
    needed = sum(own.dataset.bytes_of(window) for own in sets if own.dataset.storage.remote) / CACHE_USE / 1e9
    if needed > data.cache_gigabytes:
        raise UserError(
            f"data.cache_gigabytes is {data.cache_gigabytes:g}, and windows of {data.window_spans} x "
            f"{data.span_samples} samples (data.window_spans, data.span_samples) need about {needed:.2g}, so that "
            "spans would leave the cache before they are read; raise it, or lower one of the two."
        )


class Sequence:
    """The endless sequence of a recipe's samples, and what must stay as it is for a checkpoint's position to mean the
    same.

    Args:
        sets: from ``open_training_sets``.
        state: what ``state_dict`` gave; sub-batches may have had another size.

    Raises:
        UserError: the data or a setting that decides the order differ from those of ``state``.
    """

    def __init__(self, sets: list[TrainingSet], data: DataSection, seed: int, state: dict | None = None):
        sections = data.training_sets()
        self.sets = sets
        self.sizes = [len(own.dataset) for own in sets]
        self.quotas = quotas(
            self.sizes, [s.weight for s in sections], [s.max_samples for s in sections], data.mixture_temperature or 1.0
        )
        streams = [f"/{own.name}" for own in sets] if len(sets) > 1 else [""]
        self._orders = [
            CanonicalOrder(own.dataset.shard_sizes, seed, data.span_samples, data.window_spans, stream)
            for own, stream in zip(sets, streams, strict=True)
        ]
        self._settings = {"seed": seed, "span_samples": data.span_samples, "window_spans": data.window_spans}
        self._sub_batch, self._seed = data.sub_batch_pairs, seed
        start = self._take_up(state) if state else None
        self.mixture = Mixture(self._orders, self.quotas, self._sub_batch, seed, start)

    def state_dict(self) -> dict:
        """Plain values, the same on every rank and at every position."""
        return {
            "order": self._settings,
            "data_sets": [
                {"name": own.name, "fingerprint": own.dataset.fingerprint, "quota": q}
                for own, q in zip(self.sets, self.quotas, strict=True)
            ],
            "sub_batch_pairs": self._sub_batch,
            "start": self.mixture.start.to_plain(),
        }

    def _take_up(self, state: dict) -> Start:
        """Where a resumed sequence begins: where it began before, unless the sub-batches' size changed."""
        self._check(state)
        start = Start.from_plain(state["start"])
        if state["sub_batch_pairs"] == self._sub_batch:
            return start
        before = Mixture(self._orders, self.quotas, state["sub_batch_pairs"], self._seed, start)
        return before.restart(int(state["samples"]))

    def _check(self, state: dict) -> None:
        names, saved = [own.name for own in self.sets], [entry["name"] for entry in state["data_sets"]]
        if names != saved:
            raise UserError(
                f"data.train lists the data sets {', '.join(names)} and the checkpoint was made with "
                f"{', '.join(saved)}; list the same, or start a new run in another train.output_dir."
            )
        for own, quota, entry in zip(self.sets, self.quotas, state["data_sets"], strict=True):
            if entry["fingerprint"] != own.dataset.fingerprint:
                raise UserError(
                    f"The data folder {own.dataset.path} changed since the checkpoint: its fingerprint is "
                    f"{own.dataset.fingerprint[:16]} and the checkpoint's is {entry['fingerprint'][:16]}; restore the "
                    "old shards, or start a new run in another train.output_dir."
                )
            if entry["quota"] != quota:
                raise UserError(
                    f"An epoch would take {quota} samples of {own.name} and took {entry['quota']} before the "
                    "checkpoint, so the order of samples would "
                    "change; set the weights, max_samples and data.mixture_temperature back."
                )
        for name, value in self._settings.items():
            if state["order"][name] != value:
                key = "train.seed" if name == "seed" else f"data.{name}"
                raise UserError(
                    f"{key} is {value} and the checkpoint was made with {state['order'][name]}, so the order of "
                    "samples would change; set it back."
                )


def hard_negatives_notes(sets: list[TrainingSet], data: DataSection) -> list[str]:
    """Sentences about data sets with hard negatives that are not used, or with fewer than ``data.hard_negatives``."""
    unused, wanted, notes = [], data.hard_negatives, []
    for own in sets:
        negatives, samples = count_hard_negatives(own.dataset)
        mean = negatives / samples if samples else 0
        if wanted is None and negatives:
            unused.append(f"{own.name} ({mean:.2g} per sample)")
        if wanted and samples and mean < wanted:
            share = f"{1 - mean / wanted:.0%} of their places are masked fillers"
            notes.append(
                f"Warning: data.hard_negatives is {wanted}, but {own.name} holds {mean:.2g} per sample, so {share}."
            )
    if unused:
        shown = ", ".join(unused[:5]) + (f" and {len(unused) - 5} more data sets" if len(unused) > 5 else "")
        notes.append(
            f"Warning: hard negatives are not used, though there are some in {shown}; set data.hard_negatives to the "
            "number to use per pair, or to 0."
        )
    return notes


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
