"""An encoder that learns fast does not get away from the term that should keep its paths apart."""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from pdfx.config import ObjectiveSection
from pdfx.objective.diversity.figures import held_out_r2
from pdfx.objective.diversity.term import Diversity, Measured

BATCH, DIMENSION, INPUTS = 128, 32, 64
REMEMBERED = 1024
"""32 for each dimension, twice as many as the default has for 128 dimensions; all of its rows would take twice as
long."""


def train(rate: float, steps: int, offset: bool = False, kept_apart: bool = True) -> tuple[float, float]:
    """Two linear maps of noisy views of the same inputs, by InfoNCE of each and the default term with weight 10;
    held-out ridge R^2 from one to the other, and recall@1 among 1,000 fresh pairs."""
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

    section = ObjectiveSection.model_validate({"diversity_weight": 10.0, "recent": {"rows": REMEMBERED}})
    term = Diversity(section, 2, DIMENSION, seed=0) if kept_apart else None
    everyone = torch.ones(BATCH, dtype=torch.bool)
    for step in range(steps):
        both = embed(draw(BATCH))
        measured = term(both, everyone, step) if term else Measured()
        scores = torch.einsum("bkd,ckd->kbc", *both) / 0.05
        contrast = sum(cross_entropy(one, torch.arange(BATCH)) for one in scores)
        optimizer.zero_grad()
        (contrast if measured.loss is None else contrast + measured.loss).backward()
        optimizer.step()
        if term:
            term.summarise(measured.sums)
            term.learn(both.detach(), everyone)
    with torch.no_grad():
        query, target = embed(draw(2000))
    found = (query[:1000, 0] @ target[:1000, 0].T).argmax(1) == torch.arange(1000)
    return held_out_r2(query[:, 0], query[:, 1]), float(found.float().mean())


def test_without_the_term_the_paths_depend_on_one_another():
    r2, recall = train(3e-3, 200, kept_apart=False)
    assert r2 > 0.3 and recall >= 0.97


@pytest.mark.parametrize(("rate", "steps", "offset"), [(3e-4, 600, False), (3e-3, 200, False), (1e-2, 200, True)])
def test_neither_a_slow_nor_a_fast_encoder_gets_away_from_the_term(rate, steps, offset):
    r2, recall = train(rate, steps, offset)
    assert r2 <= 0.05 and recall >= 0.97
