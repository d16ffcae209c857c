"""``objective.diversity_pairs``: a few pairs of paths in each step, which are on average all of them."""

import pytest
import torch
from objective.diversity_cases import TERMS, diversity_of, embeddings_of
from torch.utils.flop_counter import FlopCounterMode

from pdfx.config import ObjectiveSection
from pdfx.objective.diversity.recent import draw_pairs

CLOSED = [term for term in TERMS if "network" not in term]


@pytest.mark.parametrize("scope", ["rank", "global"])
@pytest.mark.parametrize("term", CLOSED)
def test_sampled_pairs_of_paths_give_on_average_the_term_of_all_pairs_and_its_gradient(term, scope):
    """Steps until each of the three pairs of three paths was drawn. All look at all dimensions, so that steps differ in
    nothing else."""
    both, valid = embeddings_of(2, 12, 3, 6, seed=10).requires_grad_(), torch.arange(12) != 7
    settings = TERMS[term] | {"diversity_scope": scope}
    masked = both * valid[:, None, None]
    full = diversity_of(settings)(masked, valid, step=0).loss
    assert full is not None
    diversity, found = diversity_of(settings | {"diversity_pairs": 1}), {}
    for step in range(20):
        loss = diversity(masked, valid, step).loss
        gradient = torch.autograd.grad(loss, both, retain_graph=True)[0]
        found[tuple((gradient != 0).any(0).any(0).any(1).tolist())] = (loss.detach(), gradient)
    assert sorted(found) == [(False, True, True), (True, False, True), (True, True, False)]
    values, gradients = (torch.stack(each).mean(0) for each in zip(*found.values(), strict=True))
    torch.testing.assert_close(values, full.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients, torch.autograd.grad(full, both)[0], rtol=1e-10, atol=1e-12)


def test_sampled_pairs_depend_on_seed_and_step_alone_and_all_are_equally_likely():
    drawn = [draw_pairs(4, 2, seed=3, step=step) for step in range(600)]
    assert all(torch.equal(pairs, draw_pairs(4, 2, seed=3, step=step)) for step, pairs in enumerate(drawn))
    assert all(
        len({tuple(pair) for pair in pairs.tolist()}) == 2 and (pairs[:, 0] < pairs[:, 1]).all() for pairs in drawn
    )
    counts = torch.bincount(torch.cat([4 * pairs[:, 0] + pairs[:, 1] for pairs in drawn]))
    # Each of six pairs in a third of 600 steps; four standard deviations are 46.
    assert (counts[counts > 0] - 200).abs().max() < 46 and (counts > 0).sum() == 6
    assert draw_pairs(4, 6, seed=3, step=0) is None and draw_pairs(4, None, seed=3, step=0) is None


def test_sampled_pairs_cost_less():
    """Of 16 paths 2 pairs of 120; the figures about all pairs are part of the cost."""
    both, flops = embeddings_of(2, 16, 16, 32).float().requires_grad_(), {}
    for count in (None, 2):
        diversity = diversity_of({"diversity_pairs": count}, 16, 32, remembered=0)
        diversity.learn(embeddings_of(2, 256, 16, 32, seed=1).float(), torch.ones(256, dtype=torch.bool))
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(diversity(both, torch.ones(16, dtype=torch.bool), 1).metrics["diversity"], both)
        flops[count] = counter.get_total_flops()
    assert flops[2] < flops[None] / 3


def test_sampled_pairs_with_a_network_are_refused():
    network = {"bound": "vclub", "predictor": "network"}
    with pytest.raises(ValueError, match="set mutual_information.predictor to linear"):
        ObjectiveSection.model_validate({"diversity_pairs": 2, "mutual_information": network})
