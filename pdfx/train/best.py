"""The evaluation's figure by which a run's best checkpoint is known."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from pdfx.checkpoint.manifest import Metric
from pdfx.config import Config, TrainSection
from pdfx.errors import UserError, nearest
from pdfx.evaluate.data_sets import flattened
from pdfx.evaluate.embedding import EmbeddedItems
from pdfx.evaluate.retrieval import retrieval_metrics


def metric_among(metrics: dict[str, float], train: TrainSection) -> Metric | None:
    """The figure that decides, where the recipe names one and ``metrics`` are an evaluation's; they are empty if
    there was none.

    Raises:
        UserError: the evaluation does not give it.
    """
    name = train.metric_for_best_model
    if name is None or not metrics:
        return None
    if name not in metrics:
        raise UserError(unknown(name, metrics))
    return Metric(name, metrics[name])


def check_metric_name(config: Config, data_sets: Iterable[str] | None) -> None:
    """Raises UserError, naming the nearest, where ``train.metric_for_best_model`` is no figure of an evaluation on
    these data sets."""
    name = config.train.metric_for_best_model
    if name is None:
        return
    # The names follow from the number of paths and evaluate.recall_at, whatever is embedded.
    items = EmbeddedItems(
        torch.eye(2).repeat_interleave(config.model.paths, 0).view(2, config.model.paths, 2),
        torch.eye(2),
        torch.arange(2),
        np.arange(2),
    )
    metrics = retrieval_metrics(items, items, config.evaluate.recall_at)
    known = flattened(dict.fromkeys(data_sets or (), metrics))
    if name not in known:
        raise UserError(unknown(name, known))


def unknown(name: str, known: Iterable[str]) -> str:
    return f"train.metric_for_best_model is '{name}', which no evaluation gives; did you mean '{nearest(name, known)}'?"
