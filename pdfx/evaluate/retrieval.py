"""Retrieval over a directory of shards: embed every distinct query and target once, shared out over ranks, and measure
both directions.

Metrics are keyed ``DIRECTION/SCORE/METRIC``, for example ``query_to_target/fused/recall@10``. Directions are
``query_to_target`` and ``target_to_query``; scores are ``path_0`` to ``path_K-1``, ``fused``, ``maxsim`` (best of
paths) and ``chance`` (the expectation of a random order). Beside them stand ``path_cosine``, ``path_cka`` and
``path_r2`` (of several paths only; see ``path_figures``), ``queries`` and ``targets`` (how many there are),
``relevant_targets`` (how many are right for a query, on average) and ``relevant_queries``. Where queries have
candidates of their own, ``precision@1`` is measured as well, and ``candidates`` is their mean number. There, and if
some targets belong to no query, ``target_to_query`` has no meaning and is left out. ``left_out`` counts samples that
cannot be used, ``left_out_queries`` and ``left_out_targets`` what is missing therefore, ``truncated_queries`` and
``truncated_targets`` texts that were cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, distributed

from pdfx.data import ShardedDataset
from pdfx.evaluate.embedding import EmbeddedItems, Evaluator, embed_shards
from pdfx.evaluate.metrics import chance_metrics, path_figures, ranking_metrics
from pdfx.host.console import ShowProgress

DIRECTIONS = ("query_to_target", "target_to_query")
RELEVANT = {"query_to_target": "relevant_targets", "target_to_query": "relevant_queries"}
CHANCE = "chance"


def evaluate_shards(
    evaluator: Evaluator, dataset: ShardedDataset, progress: ShowProgress | None = None
) -> dict[str, float]:
    """All metrics, alike on every rank. Every rank must call this, and then makes the same number of forward passes of
    the same sizes.

    Samples that cannot be used are left out by all ranks, and named through ``evaluator.say``.

    Raises:
        UserError: there is no query, candidates do not fit, or more samples cannot be used than
            ``evaluate.max_corrupt_share`` allows.
        ValueError: an embedding is not finite.
    """
    queries, targets, counts = embed_shards(evaluator, dataset, progress)
    if evaluator.keep is not None:
        evaluator.keep(dataset, queries, targets)
    recall_at, world = evaluator.settings.recall_at, evaluator.world
    return retrieval_metrics(queries, targets, recall_at, world.rank, world.size) | counts


def retrieval_metrics(
    queries: EmbeddedItems, targets: EmbeddedItems, recall_at: Sequence[int], rank: int = 0, world_size: int = 1
) -> dict[str, float]:
    """The metrics of embedded items; each rank ranks its share of the rows, and all ranks get the same means."""
    sums: dict[str, Tensor] = {}
    for direction in directions_of(queries, targets):
        asking, answering = (queries, targets) if direction == DIRECTIONS[0] else (targets, queries)
        mine = slice(len(asking.ids) * rank // world_size, len(asking.ids) * (rank + 1) // world_size)
        own = own_candidates(asking, mine)
        for (score, rows), (_, candidates) in zip(asking.scores(), answering.scores(), strict=True):
            metrics = ranking_metrics(
                rows[mine], candidates, asking.ids[mine], answering.ids, recall_at, own_candidates=own
            )
            sums |= {f"{direction}/{score}/{name}": values.sum() / len(asking.ids) for name, values in metrics.items()}
        relevant, sizes = _counts(asking.ids[mine], answering.ids, own)
        chance = chance_metrics(relevant, sizes, recall_at)
        sums |= {f"{direction}/{CHANCE}/{name}": values.sum() / len(asking.ids) for name, values in chance.items()}
        sums[RELEVANT[direction]] = relevant.sum().double() / len(asking.ids)
    means = torch.stack(list(sums.values()))
    if world_size > 1:
        distributed.all_reduce(means)
    found: dict[str, float] = dict(zip(sums, means.tolist(), strict=True))
    if queries.paths.shape[1] > 1:
        sides = [path_figures(items.paths) for items in (queries, targets)]
        found |= {name: (sides[0][name] + sides[1][name]) / 2 for name in sides[0] if name in sides[1]}
    found |= {"queries": len(queries.ids), "targets": len(targets.ids)}
    if queries.candidates is not None:
        found["candidates"] = len(queries.candidates.rows) / len(queries.ids)
    return found


def directions_of(queries: EmbeddedItems, targets: EmbeddedItems) -> tuple[str, ...]:
    """Both; or the first alone, if a target has no query to find or is not a candidate of most queries."""
    both = queries.candidates is None and bool(torch.isin(targets.ids, queries.ids).all())
    return DIRECTIONS if both else DIRECTIONS[:1]


def own_candidates(asking: EmbeddedItems, rows: slice) -> list[Tensor] | None:
    """For each of these rows, which targets it is ranked against; None if that is all of them."""
    if asking.candidates is None:
        return None
    starts = asking.candidates.starts[rows.start : rows.stop + 1]
    chosen = torch.from_numpy(asking.candidates.rows[starts[0] : starts[-1]]).to(asking.ids.device)
    return list(chosen.split(np.diff(starts).tolist()))


def _counts(query_ids: Tensor, target_ids: Tensor, own: list[Tensor] | None) -> tuple[Tensor, Tensor | int]:
    """How many candidates are right for each query, int64 [n], and how many there are: of all, or int64 [n]."""
    if own is None:
        return relevant_counts(query_ids, target_ids), len(target_ids)
    relevant = [(target_ids[candidates] == identity).sum() for candidates, identity in zip(own, query_ids, strict=True)]
    return torch.stack([*relevant, query_ids.new_tensor(0)])[:-1], query_ids.new_tensor(
        [len(candidates) for candidates in own]
    )


def relevant_counts(query_ids: Tensor, candidate_ids: Tensor) -> Tensor:
    """int64 [n]: how many of the candidates bear each query's identity."""
    ordered = candidate_ids.sort().values
    return torch.searchsorted(ordered, query_ids, right=True) - torch.searchsorted(ordered, query_ids)
