"""How alike two paths are over the items of a side, beside what independent paths show.

Legend: n items, K paths, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pdfx.objective.diversity.figures import MOST_DIMENSIONS, held_out_r2, linear_alignment

MOST_ROWS = 2048
"""Items that are looked at, evenly spaced over the data: enough for standard errors of about .02."""
FEWEST_ROWS = 10
"""For a regression between paths."""
DRAWS = 3
"""Of every control that is random."""


@dataclass(frozen=True)
class Likeness:
    """One figure of all pairs of paths.

    Attributes:
        matrix: [K, K]; of ``r2``, row i and column j is the share of path j that path i predicts.
        mean: over pairs of different paths.
        independent: the mean of paths whose rows are permuted, so that they have nothing to do with one another.
        spread: standard deviation of the same over draws.
    """

    matrix: list[list[float]]
    mean: float
    independent: float
    spread: float


def evenly_spaced(count: int, most: int) -> Tensor:
    """int64: numbers of at most ``most`` of ``count`` items."""
    kept = min(count, most)
    return torch.arange(kept) * count // max(kept, 1)


def likenesses(paths: Tensor) -> dict[str, Likeness]:
    """``cosine`` of paths less their means, ``cka`` (linear, unbiased) and ``r2`` (held out, by ridge regression; only
    of ten items or more), of at most ``MOST_ROWS`` items.

    Args:
        paths: [n, K, D] with unit rows; K is 2 or more.
    """
    rows = paths[evenly_spaced(len(paths), MOST_ROWS).to(paths.device)].cpu().double()
    rows = rows - rows.mean(0)
    found = {"cosine": _compare(rows, _cosine), "cka": _compare(rows, _alignment)}
    if len(rows) >= FEWEST_ROWS:
        found["r2"] = _compare(_projected(rows), held_out_r2, directed=True)
    return found


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(functional.cosine_similarity(first, second, dim=-1).mean())


def _alignment(first: Tensor, second: Tensor) -> float:
    both = torch.stack([first, second], dim=1)[None]
    return float(linear_alignment(both, torch.ones(len(first), dtype=torch.bool)))


def _projected(rows: Tensor) -> Tensor:
    """The rows in as many random dimensions as a regression can take."""
    if rows.shape[-1] <= MOST_DIMENSIONS:
        return rows
    generator = torch.Generator().manual_seed(0)
    return rows @ torch.randn(rows.shape[-1], MOST_DIMENSIONS, generator=generator).double()


def _compare(rows: Tensor, measure: Callable[[Tensor, Tensor], float], directed: bool = False) -> Likeness:
    paths = rows.shape[1]
    matrix = torch.ones(paths, paths, dtype=torch.float64)
    pairs = [(i, j) for i in range(paths) for j in range(paths) if i != j]
    for i, j in pairs:
        matrix[i, j] = matrix[j, i] if j < i and not directed else measure(rows[:, i], rows[:, j])
    controls = torch.tensor([_of_neighbours(shuffled(rows, draw), measure) for draw in range(DRAWS)])
    mean = sum(float(matrix[pair]) for pair in pairs) / len(pairs)
    return Likeness(matrix.tolist(), mean, float(controls.mean()), float(controls.std()))


def _of_neighbours(rows: Tensor, measure: Callable[[Tensor, Tensor], float]) -> float:
    """The mean over each path and the next one."""
    paths = rows.shape[1]
    return sum(measure(rows[:, k], rows[:, (k + 1) % paths]) for k in range(paths)) / paths


def shuffled(rows: Tensor, seed: int) -> Tensor:
    """[n, K, D] with the rows of every path in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(rows), generator=generator) for _ in range(rows.shape[1])]
    return torch.stack([path[order] for path, order in zip(rows.unbind(1), orders, strict=True)], dim=1)
