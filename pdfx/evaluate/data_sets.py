"""Evaluation on several directories of shards, each by itself, and averages over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from pdfx.config import Config, EvaluateSection
from pdfx.data import ShardedDataset
from pdfx.data.mmeb import GROUPS, present_sets
from pdfx.data.storage.base import Reading
from pdfx.distributed.world import World, launched_ranks
from pdfx.embedder.exports import opened_export
from pdfx.errors import UserError, nearest
from pdfx.evaluate.embedding import EmbeddedItems, Evaluator, Say
from pdfx.evaluate.retrieval import evaluate_shards, retrieval_metrics
from pdfx.host.console import ShowProgress
from pdfx.host.urls import without_secrets
from pdfx.model import EmbedderOutput, ParallelEmbedder
from pdfx.model.pictures import MAX_IMAGE_PIXELS

Results = dict[str, dict[str, float]]
"""The metrics of ``retrieval.evaluate_shards`` by the name of the data set."""
Counters = Callable[[str], ShowProgress]
"""Makes the progress callback of one data set from words for it."""

ALL = "All data sets"


@dataclass(frozen=True)
class Average:
    """The plain mean over data sets.

    Attributes:
        name: of MMEB's table, or ``ALL``.
        members: the data sets that are there.
        of: how many there should be.
        metrics: keyed ``DIRECTION/SCORE/METRIC``; those that all members have.
    """

    name: str
    members: list[str]
    of: int
    metrics: dict[str, float]


def open_data_sets(
    paths: Sequence[str | Path], max_image_pixels: int = MAX_IMAGE_PIXELS, reading: Reading | None = None
) -> dict[str, ShardedDataset]:
    """The directories of shards, local ones or URLs, by name: the directory's own, with as many of its parents' as tell
    all of them apart.

    Raises:
        UserError: one is not a complete directory of shards, is given twice, or is a data set of MMEB that another one
            is as well.
    """
    names = _distinct_names([without_secrets(str(path)).rstrip("/") for path in paths])
    present_sets(names)
    return {name: ShardedDataset(path, max_image_pixels, reading) for name, path in zip(names, paths, strict=True)}


def open_evaluation(config: Config) -> dict[str, ShardedDataset] | None:
    """The shards to evaluate on by name, if the recipe names any.

    Raises:
        UserError: it asks for evaluations without, or ``train.metric_for_best_model`` is not a figure of an evaluation
            on them; the nearest is named.
    """
    if config.data.evaluation is None:
        if config.train.eval_steps is None:
            return None
        raise UserError(
            "train.eval_steps is set, but data.evaluation names no shards to evaluate on; set it, or remove "
            "train.eval_steps."
        )
    named = config.data.evaluation
    data_sets = open_data_sets(
        [named] if isinstance(named, str) else named, config.data.max_image_pixels, Reading.of(config.data)
    )
    _check_metric_name(config, data_sets)
    return data_sets


def _check_metric_name(config: Config, data_sets: Iterable[str]) -> None:
    name, paths = config.train.metric_for_best_model, config.model.paths
    if name is None:
        return
    # The names follow from the number of paths and evaluate.recall_at, whatever is embedded.
    embeddings = torch.eye(2).repeat_interleave(paths, 0).view(2, paths, 2)
    items = EmbeddedItems(embeddings, torch.eye(2), torch.arange(2), np.arange(2))
    known = flattened(dict.fromkeys(data_sets, retrieval_metrics(items, items, config.evaluate.recall_at)))
    if name not in known:
        raise UserError(unknown_metric(name, known))


def unknown_metric(name: str, known: Iterable[str]) -> str:
    """The sentence about a ``train.metric_for_best_model`` that is not among the ``known`` figures."""
    return f"train.metric_for_best_model is '{name}', which no evaluation gives; did you mean '{nearest(name, known)}'?"


def _distinct_names(paths: list[str]) -> list[str]:
    repeated = next((path for path in paths if paths.count(path) > 1), None)
    if repeated is not None:
        raise UserError(f"The shards {repeated} are given twice; give each directory once.")
    parts = [PurePosixPath(path).parts or (path,) for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return paths


def evaluate_data_sets(
    evaluator: Evaluator, data_sets: dict[str, ShardedDataset], counters: Counters | None = None
) -> Results:
    """The metrics of every data set, alike on every rank. Errors as of ``retrieval.evaluate_shards``."""
    results = {}
    for name, dataset in data_sets.items():
        progress = counters("embedding" if len(data_sets) == 1 else f"embedding {name}") if counters else None
        results[name] = evaluate_shards(evaluator, dataset, progress)
    return results


def averages(results: Results) -> list[Average]:
    """MMEB's averages over its data sets that are there, and over all if there are others; none over a single one."""
    if len(results) < 2:
        return []
    present = present_sets(results)
    found = [
        _average(name, [present[item] for item in group if item in present], len(group), results)
        for name, group in GROUPS.items()
    ]
    if len(present) < len(results):
        found.append(_average(ALL, list(results), len(results), results))
    return [average for average in found if average.members]


def _average(name: str, members: list[str], of: int, results: Results) -> Average:
    own = [results[member] for member in members]
    keys = [key for key in own[0] if key.count("/") == 2 and all(key in metrics for metrics in own)] if own else []
    return Average(name, members, of, {key: sum(metrics[key] for metrics in own) / len(own) for key in keys})


def flattened(results: Results) -> dict[str, float]:
    """One mapping: the metrics themselves of a single data set; of several, each preceded by its data set's name or by
    ``averages/`` and the average's."""
    if len(results) == 1:
        return next(iter(results.values()))
    flat = {f"{name}/{key}": value for name, metrics in results.items() for key, value in metrics.items()}
    return flat | {
        f"averages/{average.name}/{key}": value
        for average in averages(results)
        for key, value in average.metrics.items()
    }


def report_of(results: Results) -> dict:
    """Everything as plain values: the metrics themselves of a single data set; of several, ``data_sets``, ``averages``
    and ``mmeb_missing``."""
    if len(results) == 1:
        return next(iter(results.values()))
    found = {
        average.name: {"data_sets": len(average.members), "of": average.of, **average.metrics}
        for average in averages(results)
    }
    return {"data_sets": results, "averages": found, "mmeb_missing": missing_sets(results)}


def missing_sets(results: Results) -> list[str]:
    """MMEB's data sets that are not there, if some are."""
    present = present_sets(results)
    return [item.name for item in GROUPS["Overall"] if item not in present] if present else []


def evaluate_export(
    model: Path,
    shards: Sequence[str | Path],
    settings: EvaluateSection,
    num_workers: int = 0,
    trust_remote_code: bool = False,
    counters: Counters | None = None,
    say: Say | None = None,
) -> Results | None:
    """The metrics of each directory of shards by its name; None on ranks other than 0.

    Raises:
        UserError: the model or the shards cannot be used.
    """
    data_sets = open_data_sets(shards)
    with (
        launched_ranks() as ranks,
        opened_export(model, ranks.device, trust_remote_code, verify=ranks.rank == 0) as embedder,
    ):
        first = ranks.rank == 0
        evaluator = evaluator_of(embedder, settings, ranks, num_workers, say if first else None)
        results = evaluate_data_sets(evaluator, data_sets, counters if first else None)
    return results if first else None


def evaluator_of(
    embedder: ParallelEmbedder, settings: EvaluateSection, world: World, num_workers: int = 0, say: Say | None = None
) -> Evaluator:
    """What evaluates an embedder that these ranks have."""

    def embed(inputs: dict[str, Tensor]) -> EmbedderOutput:
        return embedder({name: tensor.to(embedder.device) for name, tensor in inputs.items()})

    if embedder.processor is None:
        raise ValueError("The embedder has no processor; load it with from_pretrained or call attach_processor.")
    return Evaluator(embed, embedder.processor, settings, world, num_workers, say)
