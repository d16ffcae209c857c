"""Retrieval metrics: embeddings and identities in, numbers out.

A candidate is relevant for a query when their int64 identities are equal; a query may have any number of relevant
candidates. Ties count against the model: a relevant candidate stands behind every irrelevant one whose score is not
clearly lower, so a model that embeds everything alike scores the worst and never 1.0. MMEB's own code takes the first
of the highest scores, and the right candidate is the first of its lists, so exact ties count for the model there.
Shapes: n queries, m candidates, K paths, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pdfx.objective.diversity.figures import centred_cosines, linear_alignment, paths_r2

TIE = 1e-6
"""Scores closer than this are tied: dot products of unit float32 vectors carry rounding errors of about 1e-7."""
FEWEST_ROWS = 10
"""For a regression between paths."""

NDCG_CUTOFF = 10

PRECISION = "precision@1"
"""The name of the share of queries whose first candidate is right, if queries have candidates of their own."""


def similarity(queries: Tensor, candidates: Tensor) -> Tensor:
    """Scores [n, m] of single embeddings ([n, D] and [m, D]: dot product) or of path embeddings ([n, K, D] and [m, K,
    D]: best-of-paths MaxSim).

    MaxSim is ``sum_k max_l q_k . t_l / K``: each path of the query takes the best path of the candidate. It follows
    ColBERT's late interaction (Khattab and Zaharia, 2020) with paths in the place of tokens, and is not symmetric.
    Memory is O(n m), whatever K.
    """
    if queries.dim() == 2:
        return queries @ candidates.T
    total = queries.new_zeros(len(queries), len(candidates))
    for query_path in queries.unbind(1):
        best = query_path @ candidates[:, 0].T
        for candidate_path in candidates.unbind(1)[1:]:
            torch.maximum(best, query_path @ candidate_path.T, out=best)
        total += best
    return total / queries.shape[1]


def relevant_ranks(scores: Tensor, relevant: Tensor) -> Tensor:
    """Pessimistic ranks, from 1, of every query's relevant candidates, best first: int64 [n, R], R the largest number
    of them; 0 pads shorter rows.

    The j-th best relevant candidate has rank j plus the number of irrelevant ones that score at least as much, up to
    ``TIE``.

    Args:
        scores: [n, m], finite; or minus infinity, for what is not a candidate of the query and so has no rank and
            precedes nothing.
        relevant: bool [n, m].
    """
    counts = relevant.sum(1, keepdim=True)
    most = max([1, *counts.flatten().tolist()])
    found = scores.masked_fill(~relevant, -torch.inf).topk(most, dim=1).values
    others = scores.masked_fill(relevant, -torch.inf).sort(dim=1).values
    ahead = scores.shape[1] - torch.searchsorted(others, found - TIE)
    place = torch.arange(1, found.shape[1] + 1, device=scores.device)
    return (ahead + place).masked_fill(place > counts, 0)


def ranking_metrics(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    recall_at: Sequence[int] = (1, 5, 10),
    tile_elements: int = 2**24,
    own_candidates: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:
    """``recall@k``, ``mrr`` and ``ndcg@10`` of every query, each float64 [n], and before them ``precision@1`` if
    queries have candidates of their own.

    recall@k is 1 if at least one relevant candidate is among the first k (the convention of caption retrieval), mrr
    is one over the rank of the best relevant one, ndcg@10 has binary gains (Järvelin and Kekäläinen, 2002), and
    precision@1 is 1 if the first candidate is relevant (MMEB's metric). A query without relevant candidates scores
    0. At most about ``tile_elements`` scores exist at a time.

    Args:
        queries: [n, D], or [n, K, D] for MaxSim.
        candidates: [m, D] or [m, K, D].
        query_ids: int64 [n].
        candidate_ids: int64 [m].
        own_candidates: n times int64 [number of them], the rows of ``candidates`` that each query is ranked against;
            all if None.

    Raises:
        ValueError: there are no candidates, or an embedding holds NaN or infinity.
    """
    if not len(candidates):
        raise ValueError("Ranking needs at least one candidate, and there is none.")
    if not (queries.isfinite().all() and candidates.isfinite().all()):
        raise ValueError("The embeddings hold NaN or infinity, so they cannot be ranked.")
    rows = max(1, tile_elements // len(candidates))
    tiles = []
    for start in range(0, max(1, len(queries)), rows):
        tile = slice(start, start + rows)
        scores, relevant = similarity(queries[tile], candidates), query_ids[tile, None] == candidate_ids[None, :]
        if own_candidates is not None:
            scores, relevant = among_own(scores, relevant, own_candidates[tile])
        tiles.append(
            _metrics_of_ranks(relevant_ranks(scores, relevant), recall_at, with_precision=own_candidates is not None)
        )
    return {name: torch.cat([tile[name] for tile in tiles]) for name in tiles[0]}


def among_own(scores: Tensor, relevant: Tensor, own_candidates: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """From [n, m] over all to [n, C] over each query's own candidates, C the most; fillers are never relevant."""
    if not own_candidates:
        return scores, relevant
    chosen = pad_sequence(list(own_candidates), batch_first=True, padding_value=-1)
    exists, column = chosen >= 0, chosen.clamp(min=0)
    return scores.gather(1, column).masked_fill(~exists, -torch.inf), relevant.gather(1, column) & exists


def _metrics_of_ranks(ranks: Tensor, recall_at: Sequence[int], with_precision: bool = False) -> dict[str, Tensor]:
    first, present = ranks[:, 0], ranks > 0
    metrics = {PRECISION: (present[:, 0] & (first == 1)).double()} if with_precision else {}
    metrics |= {f"recall@{k}": (present[:, 0] & (first <= k)).double() for k in recall_at}
    metrics["mrr"] = torch.where(present[:, 0], 1.0 / first.clamp(min=1).double(), 0.0)
    gains = torch.where(present & (ranks <= NDCG_CUTOFF), 1.0 / (ranks + 1).double().log2().clamp(min=1.0), 0.0)
    metrics[f"ndcg@{NDCG_CUTOFF}"] = gains.sum(1) / _ideal_gain(present.sum(1)).clamp(min=1.0)
    return metrics


def _ideal_gain(relevant: Tensor) -> Tensor:
    """The discounted gain of a perfect ranking with so many relevant candidates."""
    discounts = 1.0 / torch.arange(2, NDCG_CUTOFF + 2, dtype=torch.float64, device=relevant.device).log2()
    return torch.cat([discounts.new_zeros(1), discounts.cumsum(0)])[relevant.clamp(max=NDCG_CUTOFF)]


def chance_metrics(
    relevant: Tensor, candidates: int | Tensor, recall_at: Sequence[int] = (1, 5, 10)
) -> dict[str, Tensor]:
    """The expectation of ``ranking_metrics`` under a uniformly random order of the candidates, each float64 [n] (exact,
    no sampling).

    With r relevant among m, none is among the first j with probability ``S(j) = C(m-r, j) / C(m, j) = prod_{i<j}
    (m-r-i) / (m-i)``; so recall@k is ``1 - S(k)``, mrr is ``sum_j (S(j-1) - S(j)) / j``, and every position holds a
    relevant candidate with probability r / m.

    Args:
        relevant: int64 [n], number of relevant candidates of each query.
        candidates: m of all queries; or int64 [n], if queries have candidates of their own.
    """
    sizes = candidates if isinstance(candidates, Tensor) else torch.full_like(relevant, candidates)
    own = sizes is candidates
    levels, group = torch.stack([relevant, sizes], dim=1).unique(dim=0, return_inverse=True)
    names = [*([PRECISION] if own else []), *(f"recall@{k}" for k in recall_at), "mrr", f"ndcg@{NDCG_CUTOFF}"]
    table = torch.zeros(len(levels), len(names), dtype=torch.float64, device=relevant.device)
    for row, (count, size) in zip(table, levels.tolist(), strict=True):
        row[0] = count / size
        row[own:] = _chance(count, size, recall_at, relevant.device)
    return dict(zip(names, table[group].unbind(1), strict=True))


def _chance(relevant: int, candidates: int, recall_at: Sequence[int], device: torch.device) -> Tensor:
    """recall at each k, mrr and ndcg of a random order, float64."""
    position = torch.arange(candidates, dtype=torch.float64, device=device)
    absent = torch.cat(
        [position.new_ones(1), ((candidates - relevant - position).clamp(min=0) / (candidates - position)).cumprod(0)]
    )
    ideal = _ideal_gain(torch.arange(NDCG_CUTOFF + 1, device=device))
    ndcg = (
        relevant / candidates * ideal[min(candidates, NDCG_CUTOFF)] / ideal[min(relevant, NDCG_CUTOFF)].clamp(min=1.0)
    )
    recalls = [1 - absent[min(k, candidates)] for k in recall_at]
    return torch.stack([*recalls, ((absent[:-1] - absent[1:]) / (position + 1)).sum(), ndcg])


def path_figures(paths: Tensor) -> dict[str, float]:
    """How alike the paths of the same input are, apart from a constant offset per path.

    Args:
        paths: [n, K, D] with unit rows; K is 2 or more.

    Returns:
        ``path_cosine``, mean cosine of two paths less their means; ``path_cka``, linear CKA; ``path_r2``, the share of
        a path that a linear map of another one predicts for items that it was not fitted to, mean over ordered pairs
            and absent for fewer than 10 items.
    """
    centred = paths.double() - paths.double().mean(0)
    everything = torch.ones(len(paths), dtype=torch.bool)
    figures = {
        "path_cosine": float(centred_cosines(centred[None], everything).mean() / len(paths)),
        "path_cka": float(linear_alignment(centred[None], everything)),
    }
    return figures | ({"path_r2": paths_r2(paths)} if len(paths) >= FEWEST_ROWS else {})
