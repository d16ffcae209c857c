"""Figures about paths against plain numpy, and on paths whose answer is known."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from pdfx.evaluate.embedding import EmbeddedItems
from pdfx.evaluate.paths.asking import Asking, correlations, of_pairs, overlaps, standard_error
from pdfx.evaluate.paths.likeness import evenly_spaced, likenesses
from pdfx.evaluate.paths.oracle import blurred, noisy_copies, oracles
from pdfx.evaluate.paths.spectrum import effective_rank, effective_ranks

EXACT = 1e-9  # sums of at most some hundred float64 terms of size one


def unit_rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def items(paths: torch.Tensor, fused: torch.Tensor | None = None, candidates=None) -> EmbeddedItems:
    fused = normalize(paths.mean(1), dim=-1) if fused is None else fused
    return EmbeddedItems(paths, fused, torch.arange(len(paths)), np.arange(len(paths)), candidates)


@pytest.mark.parametrize("shares", [[1.0], [0.25] * 4, [0.5, 0.3, 0.2]])
@pytest.mark.parametrize("rows", [12, 40])
def test_effective_rank_is_the_exponential_of_the_spectrums_entropy(shares, rows):
    """Equal singular values give their number, rank one gives one; a shift and more dimensions than rows do not
    matter."""
    directions = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(7)).double())[0]
    half = torch.zeros(rows // 2, 20, dtype=torch.float64)
    half[: len(shares)] = torch.tensor(shares, dtype=torch.float64).sqrt()[:, None] * directions[: len(shares)]
    entropy = -sum(share * math.log(share) for share in shares)
    assert effective_rank(torch.cat([half, -half]) + 5) == pytest.approx(math.exp(entropy), rel=1e-6)


def test_embeddings_that_do_not_vary_have_no_rank():
    assert effective_rank(torch.ones(5, 3)) == 0


def test_the_union_of_copies_has_the_rank_of_one_path_and_independent_paths_add_up():
    path = unit_rows(500, 1, 8)
    copies = effective_ranks(path.expand(500, 3, 8))
    assert copies.union == pytest.approx(copies.paths[0], rel=1e-6)
    apart = effective_ranks(unit_rows(500, 3, 8, seed=1))
    # 24 dimensions of 500 rows: the spectrum of independent noise is not quite even.
    assert apart.union == pytest.approx(apart.independent, rel=0.01) and apart.union > 22
    assert apart.subset == pytest.approx(8, rel=0.05)
    assert copies.subset < copies.union < copies.independent


def plain_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased HSIC by the definition of Song et al. (2012), equation 5, from full Gram matrices."""

    def hsic(a, b):
        n = len(a)
        k, el = a @ a.T, b @ b.T
        np.fill_diagonal(k, 0)
        np.fill_diagonal(el, 0)
        return np.trace(k @ el) + k.sum() * el.sum() / (n - 1) / (n - 2) - 2 / (n - 2) * (k @ el).sum()

    return hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


def test_likeness_of_every_pair_equals_plain_forms():
    paths = unit_rows(30, 3, 6) + 0.4 * unit_rows(30, 1, 6, seed=1)
    found = likenesses(paths)
    centred = paths.double().numpy() - paths.double().numpy().mean(0)
    for i in range(3):
        for j in range(3):
            x, y = centred[:, i], centred[:, j]
            norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
            assert found["cosine"].matrix[i][j] == pytest.approx(((x * y).sum(1) / norms).mean(), abs=EXACT)
            assert found["cka"].matrix[i][j] == pytest.approx(plain_cka(x, y), abs=EXACT)
    for own in found.values():
        others = [own.matrix[i][j] for i in range(3) for j in range(3) if i != j]
        assert own.mean == pytest.approx(sum(others) / 6, abs=EXACT)


def test_r2_has_a_direction_and_shuffled_items_show_nothing():
    whole = unit_rows(800, 8)
    half = whole.clone()
    half[:, 4:] = 0
    found = likenesses(torch.stack([whole, half], dim=1))
    assert found["r2"].matrix[0][1] > 0.999 and 0.4 < found["r2"].matrix[1][0] < 0.6
    for own in found.values():
        assert abs(own.independent) < 0.05 and own.mean > 0.6
    assert "r2" not in likenesses(unit_rows(9, 2, 4))


def test_items_are_evenly_spaced_over_the_data():
    assert evenly_spaced(10, 4).tolist() == [0, 2, 5, 7]
    assert evenly_spaced(3, 4).tolist() == [0, 1, 2]


@pytest.mark.parametrize("own", [None, [torch.arange(k % 25 + 2) for k in range(30)]])
def test_overlaps_are_shares_of_sets(own):
    queries, candidates = unit_rows(30, 3, 5), unit_rows(40, 3, 5, seed=1)
    asking = Asking.of(items(queries), items(candidates))
    asking = Asking(asking.queries, asking.candidates, asking.query_ids, asking.candidate_ids, own, asking.rows)
    count = 10 if own is None else 5
    assert asking.nearest_count == count
    pairs = zip(queries.unbind(1), candidates.unbind(1), strict=True)
    found = overlaps([asking.nearest(*pair, tile_elements=100) for pair in pairs])
    for row in range(30):
        chosen = np.arange(40) if own is None else own[row].numpy()
        best = []
        for k in range(3):
            scores = (queries[row, k] @ candidates[chosen, k].T).numpy()
            best.append(set(chosen[np.argsort(-scores)[:count]].tolist()))
        expected = [[len(one & other) / len(one) for other in best] for one in best]
        assert found[row].tolist() == expected
    assert asking.sizes.tolist() == ([40] * 30 if own is None else [len(rows) for rows in own])
    assert of_pairs(found).tolist() == pytest.approx([(float(table.sum()) - 3) / 6 for table in found], abs=EXACT)


def test_standard_errors_are_those_of_means():
    values = torch.rand(400, generator=torch.Generator().manual_seed(0)).double()
    # A bootstrap of 1,000 draws has a relative error of about 2 %.
    assert standard_error(values) == pytest.approx(float(values.std()) / 20, rel=0.1)


def test_correlations_equal_numpys_and_constant_values_have_none():
    draws = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
    hits = (draws[:, :3] < draws[:, 3:]).double()
    matrix, mean, error = correlations(hits)
    expected = np.corrcoef(hits.numpy().T)
    assert np.allclose(matrix.numpy(), expected, atol=EXACT)
    assert mean == pytest.approx((expected.sum() - 3) / 6, abs=EXACT)
    assert 0.02 < error < 0.1
    hits[:, 2] = 1
    matrix, mean, _ = correlations(hits)
    assert matrix[0, 1] == pytest.approx(expected[0, 1], abs=EXACT) and matrix[1:, 2].isnan().any()
    assert mean == pytest.approx(expected[0, 1], abs=EXACT)
    assert math.isnan(correlations(torch.ones(5, 2))[1])


def test_outcomes_are_recall_and_reciprocal_rank_and_the_choice_takes_the_best():
    queries, candidates = unit_rows(50, 3, 4), unit_rows(50, 3, 4, seed=1)
    asking = Asking.of(items(queries), items(candidates), most=20)
    assert asking.rows.tolist() == [i * 50 // 20 for i in range(20)]
    outcomes = torch.stack(
        [asking.outcomes(asking.queries[0][:, k], asking.candidates[0][:, k]) for k in range(3)],
        dim=1,
    )
    for place, row in enumerate(asking.rows.tolist()):
        for k in range(3):
            scores = queries[row, k] @ candidates[:, k].T
            rank = int((scores >= scores[row]).sum())
            assert outcomes[place, k].tolist() == [float(rank == 1), pytest.approx(1 / rank)]
    copies = torch.rand(2, 20, 3, 2, generator=torch.Generator().manual_seed(0)).double()
    found = oracles(outcomes, outcomes[:, 0], copies)["mrr"]
    own, control = outcomes[..., 1].numpy(), copies[..., 1].numpy()
    assert found.paths.alone == pytest.approx(own.mean()) and found.paths.best == pytest.approx(own.max(1).mean())
    assert found.copies.gain == pytest.approx(control.max(2).mean() - control.mean(), abs=EXACT)
    gains = (own.max(1) - own.mean(1)) - (control.max(2) - control.mean(2)).mean(0)
    assert found.advantage == pytest.approx(gains.mean(), abs=EXACT)
    assert found.error == pytest.approx(gains.std() / math.sqrt(20), rel=0.15)
    assert found.fused == pytest.approx(own[:, 0].mean())


def advantage(queries: torch.Tensor, targets: torch.Tensor, fused: tuple[torch.Tensor, torch.Tensor]):
    """That of the choice among two paths, by reciprocal rank, and how far the copies' overlap is from the paths'."""
    asking = Asking.of(items(queries, fused[0]), items(targets, fused[1]))
    pairs = list(zip(queries.unbind(1), targets.unbind(1), strict=True))
    overlap = float(of_pairs(overlaps([asking.nearest(*pair) for pair in pairs])).mean())
    copies = noisy_copies(asking, asking, 2, overlap)
    outcomes = torch.stack([asking.outcomes(*pair) for pair in pairs], dim=1)
    found = oracles(outcomes, asking.outcomes(*fused), copies.outcomes)["mrr"]
    return found.advantage / found.error, copies.overlap - overlap


def test_paths_that_are_noisy_copies_gain_nothing_beyond_luck_and_specialised_ones_do():
    """Of the specialised paths each knows one half of the targets and sees noise in the place of the others."""
    targets = unit_rows(300, 32)
    queries = normalize(targets + 0.9 * unit_rows(300, 32, seed=1), dim=-1)
    noisy = [
        torch.stack([blurred(rows, 1.0, seed + k) for k in range(2)], 1)
        for seed, rows in ((50, queries), (60, targets))
    ]
    ratio, distance = advantage(*noisy, (queries, targets))
    assert abs(ratio) < 3 and abs(distance) < 0.01
    known = torch.arange(300)[:, None, None] % 2 == torch.arange(2)[None, :, None]
    special = torch.where(known, queries[:, None], unit_rows(300, 2, 32, seed=3))
    ratio, distance = advantage(special, targets[:, None].expand(-1, 2, -1), (queries, targets))
    assert ratio > 10 and abs(distance) < 0.01
