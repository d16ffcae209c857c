"""What choosing the best path for each query would gain, beside what the same choice among noisy copies gains.

Whoever may choose among K different rankings after seeing the answers wins by luck, the more so the more they differ.
So the control differs as much: K copies of the fused embedding with random noise, so strong that the nearest neighbours
of two copies overlap as those of two paths do. Noise knows nothing of a query, so what the choice gains over a copy
alone is luck; paths have different strengths as far as they gain more (ours).

Legend: n queries, K paths, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pdfx.evaluate.paths.asking import OUTCOMES, Asking, correlations, of_pairs, overlaps, standard_error
from pdfx.evaluate.paths.likeness import DRAWS

STRENGTHS = (0.01, 30.0)
"""Norms of the noise that is added to a unit embedding."""
HALVINGS = 9
"""Of the range of their logarithms, to within 2 %."""
TUNED_ON = 256
"""Queries that the strength of the noise is found with."""


@dataclass(frozen=True)
class Choice:
    """One outcome (recall@1 or the mean reciprocal rank) of K embeddings, each alone and the best for each query.

    Attributes:
        alone: mean over the K.
        best: with the one of the K that ranks a query's answer best.
        gain: of ``best`` over ``alone``; and its standard error.
    """

    alone: float
    best: float
    gain: float
    error: float


@dataclass(frozen=True)
class Oracle:
    """One outcome of paths and of copies.

    Attributes:
        fused: of the fused embedding.
        advantage: how much more the choice gains among paths than among copies; and its standard error.
    """

    paths: Choice
    copies: Choice
    fused: float
    advantage: float
    error: float


@dataclass(frozen=True)
class Copies:
    """The control.

    Attributes:
        strength: norm of the noise on a unit embedding.
        overlap: of the neighbours of two copies.
        outcomes: float64 [draws, n, K, 2], of every copy.
    """

    strength: float
    overlap: float
    outcomes: Tensor


def blurred(unit: Tensor, strength: float, seed: int) -> Tensor:
    """Unit rows [n, D] with independent Gaussian noise of norm ``strength``, normalised again."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(unit.shape, generator=generator).to(unit) / unit.shape[-1] ** 0.5
    return functional.normalize(unit + strength * noise, dim=-1)


def copies_of(asking: Asking, count: int, strength: float) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Queries and candidates of ``count`` noisy copies of the fused embedding, ``DRAWS`` times; one copy at a time
    exists."""
    queries, candidates = asking.queries[1], asking.candidates[1]
    for draw in range(DRAWS):
        seeds = range(2 * draw * count, 2 * (draw + 1) * count, 2)
        yield ((blurred(queries, strength, seed), blurred(candidates, strength, seed + 1)) for seed in seeds)


def _overlap(asking: Asking, count: int, strength: float) -> float:
    """Mean over draws, pairs of copies and queries."""
    found = [
        of_pairs(overlaps([asking.nearest(*copy) for copy in copies])).mean()
        for copies in copies_of(asking, count, strength)
    ]
    return float(torch.stack(found).mean())


def noisy_copies(asking: Asking, few: Asking, paths: int, overlap: float) -> Copies:
    """Copies whose neighbours overlap as much as ``overlap``.

    Args:
        few: the same with fewer queries, to find the strength with.
        paths: K, 2 or more.
    """
    low, high = STRENGTHS
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _overlap(few, paths, middle) > overlap else (low, middle)
    strength = (low * high) ** 0.5
    outcomes = [
        torch.stack([asking.outcomes(*copy) for copy in copies], dim=1) for copies in copies_of(asking, paths, strength)
    ]
    return Copies(strength, _overlap(asking, paths, strength), torch.stack(outcomes))


def oracles(paths: Tensor, fused: Tensor, copies: Tensor) -> dict[str, Oracle]:
    """By the name of the outcome.

    Args:
        paths: float64 [n, K, 2], outcomes of every path.
        fused: float64 [n, 2].
        copies: float64 [draws, n, K, 2].
    """
    found = {}
    for number, name in enumerate(OUTCOMES):
        own, gains = _choice(paths[None, ..., number])
        control, luck = _choice(copies[..., number])
        more = gains - luck
        found[name] = Oracle(own, control, float(fused[:, number].mean()), float(more.mean()), standard_error(more))
    return found


def _choice(outcomes: Tensor) -> tuple[Choice, Tensor]:
    """Of outcomes [draws, n, K]; and the gain of every query, [n]."""
    best = outcomes.amax(2)
    gains = (best - outcomes.mean(2)).mean(0)
    alone, chosen = float(outcomes.mean()), float(best.mean())
    return Choice(alone, chosen, float(gains.mean()), standard_error(gains)), gains


def phi_of_copies(copies: Tensor, number: int) -> float:
    """Mean correlation between the copies' outcomes of one kind, over draws and pairs."""
    return float(torch.tensor([correlations(draw[..., number])[1] for draw in copies]).nanmean())
