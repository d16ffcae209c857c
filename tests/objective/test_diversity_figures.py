"""Figures of how alike paths are, against their definitions, and what an offset and a rotation do to them."""

import math

import numpy as np
import pytest
import torch
from objective.diversity_cases import TERMS, diversity_of, embeddings_of
from torch.nn.functional import normalize

from pdfx.config import ObjectiveSection
from pdfx.objective.diversity.figures import (
    MOST_DIMENSIONS,
    RIDGES,
    centred_cosines,
    held_out_r2,
    linear_alignment,
    paths_r2,
    r2_from_grams,
)
from pdfx.objective.diversity.term import Diversity

EXACT = 1e-10  # float64 rounds at 1.1e-16; sums of some thousand products of size 1


def unbiased_dependence(first: np.ndarray, second: np.ndarray) -> float:
    """Song et al. 2012, equation 5, as it stands: Gram matrices without their diagonals."""
    n = len(first)
    k, m = (x @ x.T * (1 - np.eye(n)) for x in (first, second))
    constant = k.sum() * m.sum() / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + constant - 2 / (n - 2) * (k @ m).sum()) / (n * (n - 3))


@pytest.mark.parametrize("size", [5, 33], ids=["more rows", "more dimensions"])
@pytest.mark.parametrize("left_out", [[], [0, 5, 19]], ids=["all valid", "fillers"])
def test_linear_alignment_is_cka_of_gram_matrices_without_diagonals(left_out, size):
    values, valid = embeddings_of(2, 20, 3, size, seed=1), torch.ones(20, dtype=torch.bool)
    valid[left_out] = False
    expected = []
    for side in values[:, valid].numpy():
        rows = side.transpose(1, 0, 2)
        pairs = [
            unbiased_dependence(rows[i], rows[j])
            / math.sqrt(unbiased_dependence(rows[i], rows[i]) * unbiased_dependence(rows[j], rows[j]))
            for i, j in ((0, 1), (0, 2), (1, 2))
        ]
        expected.append(sum(pairs) / 3)
    assert linear_alignment(values, valid).tolist() == pytest.approx(expected, rel=EXACT)


def test_linear_alignment_of_too_few_rows_is_zero_and_of_a_rotation_one():
    values = embeddings_of(1, 6, 1, 4, seed=1)
    rotation = torch.linalg.qr(embeddings_of(4, 4, seed=2))[0]
    turned = torch.cat([values, 3 * values @ rotation + 1], dim=2)
    assert linear_alignment(turned, torch.ones(6, dtype=torch.bool)).tolist() == pytest.approx([1], abs=EXACT)
    assert linear_alignment(turned, torch.arange(6) < 3).tolist() == [0]


def test_cka_in_training_sees_rotations_in_all_dimensions_and_none_between_independent_paths():
    """Which a projection to 8 of 600 dimensions does not."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(600, 600, generator=generator))[0]
    first, second = torch.randn(2, 2, 700, 1, 600, generator=generator)
    found = []
    for other in (first @ rotation, second):
        diversity = Diversity(ObjectiveSection.model_validate({"recent": {"projection": 8}}), 2, 600, seed=0)
        diversity.learn(torch.cat([first, other], dim=2), torch.ones(700, dtype=torch.bool))
        batch = torch.cat([first, other], dim=2)[:, :16]
        found.append(float(diversity(batch, torch.ones(16, dtype=torch.bool), step=1).metrics["path_cka"]))
    # 350 rows are looked at: an error of 1 / 350 for a side's pair.
    assert found == pytest.approx([1, 0], abs=4 / 350)


def test_centred_cosines_equal_a_plain_loop():
    values, valid = embeddings_of(2, 9, 3, 5, seed=1), torch.arange(9) != 4
    found = centred_cosines(values, valid).tolist()
    for number, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        cosines = [
            float(
                values[side, row, i] @ values[side, row, j] / values[side, row, i].norm() / values[side, row, j].norm()
            )
            for side in range(2)
            for row in range(9)
            if row != 4
        ]
        assert found[number] == pytest.approx(sum(cosines) / 2, rel=EXACT)


def test_held_out_r2_is_that_of_the_best_ridge_regression_fold_by_fold():
    given, predicted = embeddings_of(43, 2, 4, seed=3).unbind(1)
    predicted = predicted + given @ embeddings_of(4, 4, seed=4)
    x, y = given.numpy(), predicted.numpy()
    fold = np.arange(43) * 5 // 43
    found = []
    for ridge in RIDGES:
        residual = variation = 0.0
        for number in range(5):
            rest, test = fold != number, fold == number
            mean, deviation = x[rest].mean(0), x[rest].std(0, ddof=1)
            inputs, offset = (x - mean) / deviation, y[rest].mean(0)
            moments = inputs[rest].T @ inputs[rest] / rest.sum() + ridge * np.eye(4)
            solution = np.linalg.solve(moments, inputs[rest].T @ (y[rest] - offset) / rest.sum())
            residual += ((y[test] - offset - inputs[test] @ solution) ** 2).sum()
            variation += ((y[test] - offset) ** 2).sum()
        found.append(1 - residual / variation)
    assert 0.2 < max(found) < 0.95
    assert held_out_r2(given, predicted) == pytest.approx(max(found), rel=EXACT)


def test_held_out_r2_of_what_does_not_vary_is_zero():
    assert held_out_r2(embeddings_of(20, 4), torch.ones(20, 3)) == 0


def test_paths_r2_averages_ordered_pairs():
    paths = embeddings_of(40, 3, 4, seed=6)
    pairs = [held_out_r2(paths[:, i], paths[:, j]) for i in range(3) for j in range(3) if i != j]
    assert paths_r2(paths) == pytest.approx(sum(pairs) / 6, rel=EXACT)


def plain_r2(x: np.ndarray, y: np.ndarray) -> float:
    """Ridge regression fold by fold in D dimensions, with an intercept; a fold's ridge is chosen by the other folds."""
    n = len(x)
    fold, x = np.arange(n) * 5 // n, (x - x.mean(0)) / x.std(0, ddof=1)
    residuals, variations = np.zeros((len(RIDGES), 5)), np.zeros(5)
    for number in range(5):
        rest, test = fold != number, fold == number
        shift, offset = x[rest].mean(0), y[rest].mean(0)
        inputs = x[rest] - shift
        variations[number] = ((y[test] - offset) ** 2).sum()
        for place, ridge in enumerate(RIDGES):
            solution = np.linalg.solve(
                inputs.T @ inputs + n * ridge * np.eye(x.shape[1]), inputs.T @ (y[rest] - offset)
            )
            residuals[place, number] = ((y[test] - offset - (x[test] - shift) @ solution) ** 2).sum()
    chosen = (residuals.sum(1, keepdims=True) - residuals).argmin(0)
    return 1 - residuals[chosen, np.arange(5)].sum() / variations.sum()


@pytest.mark.parametrize("size", [4, 60], ids=["more rows", "more dimensions"])
def test_r2_from_grams_is_that_of_plain_ridge_regressions_fold_by_fold(size):
    """For two paths, of each of which one other is predicted, so that the ridge is chosen for that one alone."""
    first, own = embeddings_of(43, 2, size, seed=3).unbind(1)
    second = own + first @ embeddings_of(size, size, seed=4)
    expected = [plain_r2(*pair) for pair in ((first.numpy(), second.numpy()), (second.numpy(), first.numpy()))]
    assert 0.05 < min(expected) < 0.95
    assert r2_from_grams(torch.stack([first, second], 1)) == pytest.approx(sum(expected) / 2, rel=1e-8)


def test_r2_from_grams_averages_over_paths_and_one_that_does_not_vary_is_not_predicted():
    """Two paths that are alike, and a constant one: of six ordered pairs two are predicted."""
    first = embeddings_of(60, 1, 5, seed=6)
    found = r2_from_grams(torch.cat([first, first, torch.ones(60, 1, 5, dtype=torch.float64)], dim=1))
    assert found == pytest.approx(2 / 6, abs=1e-3)


def test_evaluated_paths_that_are_rotations_are_seen_in_all_dimensions_and_independent_ones_are_not():
    """With 300 dimensions a projection to 256 random ones would show .85 of it, and to 128 less than half."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 600, MOST_DIMENSIONS + 44, generator=generator)
    rotation = torch.linalg.qr(torch.randn(300, 300, generator=generator))[0]
    assert paths_r2(torch.stack([first, first @ rotation], dim=1)) > 0.99
    # Shrunk by a ridge of 100 times the variance, chance explains less than nothing by some 1e-4.
    assert paths_r2(torch.stack([first, second], dim=1)) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("term", TERMS)
def test_an_offset_per_path_that_was_always_there_changes_only_orthogonality(term):
    """Of the term, its gradient and every figure."""
    offset = 3 * embeddings_of(2, 1, 3, 6, seed=8)
    learned, both = embeddings_of(2, 64, 3, 6, seed=9), embeddings_of(2, 12, 3, 6, seed=10)
    valid = torch.arange(12) != 7
    found = []
    for shift in (0, offset):
        diversity = diversity_of(TERMS[term])
        diversity.recent.load_state_dict({})
        diversity.recent.add(learned + shift, torch.ones(64, dtype=torch.bool))
        now = ((both + shift) * valid[:, None, None]).requires_grad_()
        measured = diversity(now, valid, step=2)
        gradient = torch.autograd.grad(measured.loss, now)[0]
        found.append([measured.loss.detach(), gradient, measured.metrics | diversity.summarise(measured.sums)])
    if term == "orthogonality":
        assert found[1][0] > 10 * found[0][0]
        return
    # Rows of size 3 are rounded at 4e-16, and a division by deviations of .3 in squares makes 100 times that of it.
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)
    assert {"path_cosine", "path_cosine_max", "path_cka", "path_r2"} <= found[0][2].keys()


@pytest.mark.parametrize(("projection", "expected"), [(64, 1.0), (16, 0.25), (8, 0.125)])
def test_a_projection_sees_its_share_of_a_rotation(projection, expected):
    """Paths that predict each other fully, but not dimension by dimension: d of D random dimensions of one tell d / D
    of the same dimensions of the other. So ``path_r2`` is 1 only if all D are looked at."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=generator))[0]
    rows = normalize(torch.randn(2, 2176, 1, 64, generator=generator), dim=-1)
    both = torch.cat([rows, rows @ rotation], dim=2)
    diversity = Diversity(ObjectiveSection.model_validate({"recent": {"projection": projection}}), 2, 64, seed=0)
    diversity.learn(both[:, 128:], torch.ones(2048, dtype=torch.bool))
    found = []
    for step in range(8):
        measured = diversity(both[:, :128], torch.ones(128, dtype=torch.bool), step)
        found.append(float(diversity.summarise(measured.sums)["path_r2"]))
    assert np.mean(found) == pytest.approx(expected, rel=0.2)
