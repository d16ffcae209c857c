"""Who is contrasted with whom: embeddings of all ranks, and the views over which every contrastive loss is averaged.

Legend: B pairs on this rank, K paths, M hard negatives per pair, D dimension, W world size, C candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor
from torch.nn import functional

from pdfx.objective.contrastive import Exclusion
from pdfx.objective.gather import all_gather
from pdfx.objective.pairs import PairEmbeddings


@dataclass(frozen=True)
class Pairs:
    """Who is whose negative: for each direction what its rows exclude, and how much a valid row of this rank weighs."""

    valid: Tensor  # bool [B]
    weight: float  # W / valid pairs of all ranks
    to_targets: Exclusion
    to_queries: Exclusion

    @cached_property
    def weights(self) -> Tensor:
        """float64 [B]: ``weight``, or 0 if not valid."""
        return self.weight * self.valid.double()


@dataclass(frozen=True)
class Pool:
    """One kind of embeddings: those of this rank in rows, negatives [B * M, ...], and those of all ranks."""

    local: PairEmbeddings
    candidates: Tensor  # [W * B * (1 + M), ...], all targets and then all negatives
    queries: Tensor | None  # [W * B, ...] if targets are contrasted with queries too


def gather_pools(paths: PairEmbeddings, fused: PairEmbeddings, symmetric: bool) -> tuple[Pool, Pool]:
    """The pools of both kinds, in one collective."""
    kinds = paths, fused
    parts = [x for kind in kinds for x in (kind.target, kind.negatives, *([kind.query] if symmetric else []))]
    gathered = iter(all_gather(parts))
    first, second = (
        Pool(kind, torch.cat([next(gathered), next(gathered)]), next(gathered) if symmetric else None) for kind in kinds
    )
    return first, second


def mean_over_views(loss: Callable[..., Tensor], pairs: Pairs, dims: list[int], *pools: Pool) -> Tensor:
    """The mean of ``loss`` over directions, the one from queries to targets first, and over the full embeddings and
    their leading ``dims``.

    Args:
        loss: of an exclusion and, for each pool, rows [B, K, d] and candidates [C, K, d].
    """
    sizes = []
    for size in (None, *dims):
        sides = [_lead(side, size) for pool in pools for side in (pool.local.query, pool.candidates)]
        ways = [loss(pairs.to_targets, *sides)]
        backwards = [(pool.local.target, pool.queries) for pool in pools if pool.queries is not None]
        if backwards:
            ways.append(loss(pairs.to_queries, *(_lead(side, size) for way in backwards for side in way)))
        sizes.append(reduce(torch.add, ways) / len(ways))
    return torch.stack(sizes).mean(0)


def _lead(embeddings: Tensor, size: int | None) -> Tensor:
    return embeddings if size is None else functional.normalize(embeddings[..., :size], dim=-1)
