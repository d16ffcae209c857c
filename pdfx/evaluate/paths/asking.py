"""Some queries, what they search in, and what single embeddings find for them.

Legend: n queries, m candidates, K paths, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pdfx.evaluate.embedding import EmbeddedItems
from pdfx.evaluate.metrics import among_own, ranking_metrics, similarity
from pdfx.evaluate.paths.likeness import MOST_ROWS, evenly_spaced
from pdfx.evaluate.retrieval import own_candidates

NEAREST = 10
"""Candidates that count as a query's neighbours, at most."""
RESAMPLES = 1000
OUTCOMES = ("recall@1", "mrr")


@dataclass(frozen=True)
class Asking:
    """Queries of one direction.

    Attributes:
        queries: [n, K, D] and [n, F] of the queries.
        candidates: [m, K, D] and [m, F].
        query_ids: int64 [n].
        candidate_ids: int64 [m].
        own: rows of the candidates that each query is ranked against; all if None.
        rows: int64 [n], where the queries stand among all items of their side.
    """

    queries: tuple[Tensor, Tensor]
    candidates: tuple[Tensor, Tensor]
    query_ids: Tensor
    candidate_ids: Tensor
    own: list[Tensor] | None
    rows: Tensor

    @classmethod
    def of(cls, asking: EmbeddedItems, answering: EmbeddedItems, most: int = MOST_ROWS) -> Asking:
        """At most so many queries, evenly spaced."""
        rows = evenly_spaced(len(asking.ids), most)
        own = own_candidates(asking, slice(0, len(asking.ids)))
        place = rows.to(asking.ids.device)
        return cls(
            (asking.paths[place], asking.fused[place]),
            (answering.paths, answering.fused),
            asking.ids[place],
            answering.ids,
            None if own is None else [own[row] for row in rows.tolist()],
            rows,
        )

    @property
    def sizes(self) -> Tensor:
        """int64 [n]: candidates of each query."""
        sizes = [len(self.candidate_ids)] * len(self.rows) if self.own is None else [len(own) for own in self.own]
        return torch.tensor(sizes)

    @property
    def nearest_count(self) -> int:
        """How many candidates are neighbours: few enough that most queries have as many others."""
        return max(1, min(NEAREST, int(self.sizes.median()) // 2))

    def outcomes(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """float64 [n, 2]: recall@1 and the reciprocal rank of every query, by these embeddings of all."""
        found = ranking_metrics(
            queries, candidates, self.query_ids, self.candidate_ids, recall_at=(1,), own_candidates=self.own
        )
        return torch.stack([found[name] for name in OUTCOMES], dim=1).cpu()

    def nearest(self, queries: Tensor, candidates: Tensor, tile_elements: int = 2**24) -> Tensor:
        """int64 [n, ``nearest_count``]: places of the best candidates among the query's own; -1 if there are fewer."""
        count, rows = self.nearest_count, max(1, tile_elements // len(candidates))
        found = []
        for start in range(0, len(queries), rows):
            scores = similarity(queries[start : start + rows], candidates)
            if self.own is not None:
                nobody = torch.zeros_like(scores, dtype=torch.bool)
                scores, _ = among_own(scores, nobody, self.own[start : start + rows])
            best = scores.topk(min(count, scores.shape[1]), dim=1)
            places = best.indices.masked_fill(best.values == -torch.inf, -1)
            missing = places.new_full((len(places), count - places.shape[1]), -1)
            found.append(torch.cat([places, missing], dim=1).cpu())
        return torch.cat(found)


def overlaps(neighbours: Sequence[Tensor]) -> Tensor:
    """float64 [n, K, K]: the share of a query's neighbours that two embeddings have in common.

    Args:
        neighbours: K times int64 [n, count], -1 if there are fewer.
    """
    shared = [
        torch.stack(
            [((one[:, :, None] == other[:, None, :]) & (one >= 0)[:, :, None]).sum((1, 2)) for other in neighbours]
        )
        for one in neighbours
    ]
    counts = (neighbours[0] >= 0).sum(1).clamp_min(1)
    return torch.stack(shared).permute(2, 0, 1).double() / counts[:, None, None]


def of_pairs(table: Tensor) -> Tensor:
    """[...]: mean over pairs of different embeddings of ``table`` [..., K, K]."""
    count = table.shape[-1]
    return (table.sum((-1, -2)) - table.diagonal(dim1=-2, dim2=-1).sum(-1)) / (count * (count - 1))


def resampled_means(values: Tensor) -> Tensor:
    """float64 [``RESAMPLES``, C]: means of ``values`` [n, C] over queries drawn with replacement (Efron's bootstrap,
    1979), the same ones for all columns."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    weights = torch.zeros(RESAMPLES, len(values), dtype=torch.float64)
    weights.scatter_add_(1, chosen, torch.ones_like(weights))
    return weights @ values.double() / len(values)


def standard_error(values: Tensor) -> float:
    """Of the mean of ``values`` [n], by bootstrap over queries."""
    return float(resampled_means(values[:, None]).std())


def correlations(values: Tensor) -> tuple[Tensor, float, float]:
    """Correlation over queries of what K embeddings have of them; of values 0 and 1 it is phi.

    Args:
        values: [n, K]; a column whose values are all the same has no correlation.

    Returns:
        float64 [K, K], NaN where there is none; its mean over pairs of different embeddings; and the standard error of
        that mean, by bootstrap over queries.
    """
    values = values.double() - values.double().mean(0)
    count = values.shape[1]
    first, second = torch.triu_indices(count, count, 1)
    # All moments in one table, so that one draw of queries serves every correlation.
    table = torch.cat([values, values.square(), values[:, first] * values[:, second]], dim=1)

    def between(means: Tensor) -> Tensor:
        mean, square, product = means.split([count, count, len(first)], dim=-1)
        variance = (square - mean.square()).clamp_min(0)
        variance = variance.masked_fill(variance < 1e-12, torch.nan)
        covariance = product - mean[..., first] * mean[..., second]
        return covariance / (variance[..., first] * variance[..., second]).sqrt()

    matrix = torch.eye(count, dtype=torch.float64)
    matrix[first, second] = matrix[second, first] = between(table.mean(0))
    draws = between(resampled_means(table)).nanmean(-1)
    draws = draws[draws.isfinite()]
    return matrix, float(matrix[first, second].nanmean()), float(draws.std()) if len(draws) > 1 else float("nan")
