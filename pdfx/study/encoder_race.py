"""Does an encoder that learns fast get away from the term that should keep its paths apart?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from pdfx.config import ObjectiveSection
from pdfx.objective.diversity.figures import held_out_r2
from pdfx.objective.diversity.term import Diversity, Measured

WEIGHT = 10.0
"""Of the term. Contrast is soon near 0 here, so that Adam makes the same of any weight from 3 to 30."""
BATCH, TEMPERATURE, NOISE = 128, 0.05, 0.2
SEARCHED = 1000
"""Pairs among which each one is searched."""


def race(
    settings: dict[str, Any] | None, dimension: int, rate: float, steps: int, offset: bool = False, seed: int = 0
) -> dict[str, float]:
    """Train two linear maps of noisy views of the same inputs, by InfoNCE of each and a diversity term.

    Inputs are Gaussian with 2 D dimensions, so that two paths of D can share out what there is, and standard deviations
    that fall as ``1 / sqrt(number of the dimension)``.

    Args:
        settings: of the section ``objective``; None for no term.
        dimension: D.
        rate: learning rate of Adam.
        offset: whether each path may also learn a constant.

    Returns:
        ``r2``: held-out R^2 of the second path from the first by ridge regression in all dimensions, of 2,000 to 4,096
        fresh pairs; ``recall``: recall@1 of the first path among 1,000 pairs.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, 2 * dimension + 1) ** -0.5
    scale /= scale.square().mean().sqrt()
    maps = (torch.randn(2, 2 * dimension, dimension, generator=generator) / (6 * dimension) ** 0.5).requires_grad_()
    offsets = torch.zeros(2, dimension, requires_grad=offset)
    optimizer = torch.optim.Adam([maps, offsets] if offset else [maps], lr=rate)
    term = None
    if settings is not None:
        section = ObjectiveSection.model_validate({"diversity_weight": WEIGHT} | settings)
        term = Diversity(section, 2, dimension, seed)

    def embed(rows: int) -> Tensor:
        """[2, n, 2, D]"""
        common, *noise = torch.randn(3, rows, 2 * dimension, generator=generator) * scale
        views = torch.stack([common + NOISE * one for one in noise])
        return normalize(torch.einsum("sbi,kid->sbkd", views, maps) + offsets, dim=-1)

    everyone = torch.ones(BATCH, dtype=torch.bool)
    for step in range(steps):
        both = embed(BATCH)
        measured = term(both, everyone, step) if term else Measured()
        scores = torch.einsum("bkd,ckd->kbc", *both) / TEMPERATURE
        contrast = torch.stack([cross_entropy(one, torch.arange(BATCH)) for one in scores]).sum()
        optimizer.zero_grad()
        (contrast if measured.loss is None else contrast + measured.loss).backward()
        optimizer.step()
        if term:
            term.summarise(measured.sums)
            term.learn(both.detach(), everyone)
    with torch.no_grad():
        query, target = embed(min(max(2000, 16 * dimension), 4096))
    found = (query[:SEARCHED, 0] @ target[:SEARCHED, 0].T).argmax(1) == torch.arange(SEARCHED)
    return {"r2": held_out_r2(query[:, 0], query[:, 1]), "recall": float(found.float().mean())}
