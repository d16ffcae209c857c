"""Does the gradient of a diversity term lower the true dependence between two paths?

Legend: D dimension of an embedding; an input has 2 D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pdfx.config import ObjectiveSection
from pdfx.objective.diversity.term import Diversity

OWN_NOISE = 0.5
"""Noise that each path adds to its input, relative to the input: no correlation between paths exceeds .8, so the true
information is finite wherever the maps are."""
STEP = 0.01
"""Length of a step, relative to the maps'."""
AVERAGED = 16
"""Steps over which gradients are also averaged, as an optimiser does."""


def true_information(maps: Tensor, variances: Tensor) -> Tensor:
    """Mutual information, in nats per dimension, of two linear maps of the same Gaussian input, each with noise of its
    own: ``1/2 (log|S11| + log|S22| - log|S|) / D`` (Cover and Thomas, Elements of Information Theory, section 8.5).

    Args:
        maps: [2, 2D, D].
        variances: [2D], of the input's dimensions.
    """
    joint = torch.einsum("kid,i,lie->kdle", maps, variances, maps)
    size = maps.shape[-1]
    own = torch.eye(2, dtype=maps.dtype)[:, None, :, None] * OWN_NOISE**2
    joint = (joint * (1 + own)).flatten(0, 1).flatten(1)
    parts = torch.logdet(joint[:size, :size]) + torch.logdet(joint[size:, size:])
    return 0.5 * (parts - torch.logdet(joint)) / size


def gradient_quality(
    settings: dict[str, Any], dimension: int, uneven: bool, batch: int, steps: int, seed: int
) -> dict[str, float]:
    """Compare a term's gradient with that of the true information, on two random maps that do not move.

    Args:
        settings: of the section ``objective``.
        uneven: whether standard deviations of the input fall as ``1 / sqrt(number of the dimension)``.
        steps: whose pairs are known before the first gradient.

    Returns:
        ``cosine``: between the two gradients, mean over the last 16 steps; ``cosine_averaged``: of the mean of the
        term's gradients over these; ``share``: what a small step down the term's gradient takes off the true
        information, over what an equally long step down the true gradient takes off, mean over the same steps.
    """
    generator = torch.Generator().manual_seed(seed)
    deviations = torch.arange(1, 2 * dimension + 1) ** (-0.5 if uneven else 0.0)
    variances = deviations.double().square()
    maps = torch.randn(2, 2 * dimension, dimension, generator=generator).requires_grad_()
    term = Diversity(ObjectiveSection.model_validate(settings), 2, dimension, seed)
    everyone = torch.ones(batch, dtype=torch.bool)
    gradients = []
    for step in range(steps + AVERAGED):
        seen = torch.randn(2, batch, 1, 2 * dimension, generator=generator)
        noise = torch.randn(2, batch, 2, 2 * dimension, generator=generator)
        both = torch.einsum("sbki,kid->sbkd", (seen + OWN_NOISE * noise) * deviations, maps)
        if step >= steps:
            value = term(both, everyone, step).metrics["diversity"]
            gradients.append(torch.autograd.grad(value, maps)[0].double())
        term.learn(both.detach(), everyone)
    exact = maps.detach().double().requires_grad_()
    information = true_information(exact, variances)
    best = torch.autograd.grad(information, exact)[0]
    exact = exact.detach()

    def fall(direction: Tensor) -> float:
        moved = exact - STEP * exact.norm() * direction / direction.norm().clamp_min(1e-30)
        return float(information.detach() - true_information(moved, variances))

    def cosine(gradient: Tensor) -> float:
        return float(torch.cosine_similarity(gradient.flatten(), best.flatten(), dim=0))

    return {
        "cosine": sum(map(cosine, gradients)) / AVERAGED,
        "cosine_averaged": cosine(torch.stack(gradients).mean(0)),
        "share": sum(map(fall, gradients)) / AVERAGED / fall(best),
    }
