"""An encoder that learns fast does not get away from the term that should keep its paths apart."""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from pdfx.config import ObjectiveSection
from pdfx.objective.diversity.figures import held_out_r2
from pdfx.objective.diversity.term import Diversity

BATCH, DIMENSION, INPUTS, STEPS = 128, 32, 64, 200


def train(rate: float, weight: float, offset: bool) -> tuple[float, float]:
    """Two linear maps of noisy views of the same inputs, by InfoNCE of each and the default term; held-out ridge R^2
    from one to the other, and recall@1 among 1,000 fresh pairs."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, INPUTS + 1) ** -0.5
    scale /= scale.square().mean().sqrt()

    def draw(rows: int) -> torch.Tensor:
        common, *noise = torch.randn(3, rows, INPUTS, generator=generator) * scale
        return torch.stack([common + 0.2 * one for one in noise])

    maps = (torch.randn(2, INPUTS, DIMENSION, generator=generator) / (3 * INPUTS) ** 0.5).requires_grad_()
    offsets = torch.zeros(2, DIMENSION, requires_grad=True)
    optimizer = torch.optim.Adam([maps, offsets] if offset else [maps], lr=rate)

    def embed(inputs: torch.Tensor) -> torch.Tensor:
        return normalize(torch.einsum("sbi,kid->sbkd", inputs, maps) + offsets, dim=-1)

    term = Diversity(ObjectiveSection(diversity_weight=weight), 2, DIMENSION, seed=0)
    everyone = torch.ones(BATCH, dtype=torch.bool)
    for step in range(STEPS):
        both = embed(draw(BATCH))
        measured = term(both, everyone, step)
        scores = torch.einsum("bkd,ckd->kbc", *both) / 0.05
        contrast = sum(cross_entropy(one, torch.arange(BATCH)) for one in scores)
        optimizer.zero_grad()
        (contrast + measured.loss).backward()
        optimizer.step()
        term.summarise(measured.sums)
        term.learn(both.detach(), everyone)
    with torch.no_grad():
        query, target = embed(draw(2000))
    found = (query[:1000, 0] @ target[:1000, 0].T).argmax(1) == torch.arange(1000)
    return held_out_r2(query[:, 0], query[:, 1]), float(found.float().mean())


def test_without_the_term_the_paths_depend_on_one_another():
    r2, recall = train(3e-3, 0.0, offset=False)
    assert r2 > 0.4 and recall > 0.97


@pytest.mark.parametrize(("rate", "offset"), [(3e-3, False), (1e-2, False), (1e-2, True)])
def test_a_fast_encoder_does_not_outrun_the_term(rate, offset):
    r2, recall = train(rate, 10.0, offset)
    assert r2 <= 0.05 and recall > 0.97
