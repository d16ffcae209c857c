"""How many directions paths have, alone and together.

Legend: n items, K paths, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pdfx.evaluate.paths.likeness import DRAWS, MOST_ROWS, evenly_spaced, shuffled


@dataclass(frozen=True)
class Ranks:
    """Effective ranks of one side.

    Attributes:
        paths: of each path, [K].
        union: of the K paths side by side, K*D dimensions.
        subset: of D random ones of these dimensions, as many as one path has; mean over draws.
        independent: of the union of paths whose rows are permuted; mean over draws. The union of K copies of one path
            has the path's own effective rank.
    """

    paths: list[float]
    union: float
    subset: float
    independent: float


def effective_rank(embeddings: Tensor) -> float:
    """Exponential of the entropy of the shares that the eigenvalues of the covariance have of its trace (Roy and
    Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007): D if all directions vary alike,
    1 if a single one does, and 0 if nothing varies.

    Args:
        embeddings: [n, D]; n items show at most n - 1 directions.
    """
    centred = embeddings.double() - embeddings.double().mean(0)
    # The smaller of the covariance and the Gram matrix: they share their eigenvalues.
    square = centred.T @ centred if centred.shape[0] > centred.shape[1] else centred @ centred.T
    values = torch.linalg.eigvalsh(square).clamp_min(0)
    if not values.sum() > 0:
        return 0.0
    shares = values / values.sum()
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))


def effective_ranks(paths: Tensor) -> Ranks:
    """Of at most ``MOST_ROWS`` items of ``paths`` [n, K, D]."""
    rows = paths[evenly_spaced(len(paths), MOST_ROWS).to(paths.device)].cpu()
    size = rows.shape[-1]
    union = rows.flatten(1)
    generator = torch.Generator().manual_seed(0)
    chosen = [torch.randperm(union.shape[1], generator=generator)[:size] for _ in range(DRAWS)]
    return Ranks(
        paths=[effective_rank(path) for path in rows.unbind(1)],
        union=effective_rank(union),
        subset=sum(effective_rank(union[:, columns]) for columns in chosen) / DRAWS,
        independent=sum(effective_rank(shuffled(rows, draw).flatten(1)) for draw in range(DRAWS)) / DRAWS,
    )
