import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking_reference import plain_metrics

from pdfx.evaluate.metrics import chance_metrics, path_figures, ranking_metrics, similarity

EXACT = 1e-12  # sums of at most a few dozen float64 terms of size one


def integers(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Small whole numbers: dot products are exact in float32 and tie often."""
    return torch.randint(-2, 3, shape, generator=generator).float()


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 30), st.integers(1, 6), st.integers(1, 100))
def test_metrics_equal_a_plain_reference_with_ties_and_any_number_of_relevant_candidates(
    seed, n, m, identities, tile_elements
):
    generator = torch.Generator().manual_seed(seed)
    queries, candidates = integers(generator, n, 3), integers(generator, m, 3)
    query_ids = torch.randint(identities, (n,), generator=generator)
    candidate_ids = torch.randint(identities, (m,), generator=generator)
    actual = ranking_metrics(queries, candidates, query_ids, candidate_ids, [1, 3, 10], tile_elements)
    expected = plain_metrics(
        (queries @ candidates.T).numpy(), (query_ids[:, None] == candidate_ids).numpy(), [1, 3, 10]
    )
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        assert actual[name].tolist() == pytest.approx(values, abs=EXACT), name


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 30), st.integers(1, 100))
def test_metrics_over_own_candidates_equal_a_plain_loop_over_them(seed, n, m, tile_elements):
    generator = torch.Generator().manual_seed(seed)
    queries, candidates = integers(generator, n, 2, 3), integers(generator, m, 2, 3)
    query_ids = torch.randint(m, (n,), generator=generator)
    own = [
        torch.randperm(m, generator=generator)[: int(torch.randint(1, m + 1, (1,), generator=generator))]
        for _ in range(n)
    ]
    own = [torch.cat([rows, right[None]]).unique() for rows, right in zip(own, query_ids, strict=True)]
    actual = ranking_metrics(queries, candidates, query_ids, torch.arange(m), [1, 3], tile_elements, own)
    scores = similarity(queries, candidates).numpy()
    alone = [
        plain_metrics(scores[i, rows.numpy()][None], (rows == query_ids[i]).numpy()[None], [1, 3])
        for i, rows in enumerate(own)
    ]
    assert list(actual) == ["precision@1", *alone[0]]
    for name in alone[0]:
        assert actual[name].tolist() == pytest.approx([metrics[name][0] for metrics in alone], abs=EXACT), name
    right = [
        float(all(scores[i, row] < scores[i, query_ids[i]] for row in rows.tolist() if row != query_ids[i]))
        for i, rows in enumerate(own)
    ]
    assert actual["precision@1"].tolist() == right


def test_a_collapsed_model_is_right_only_where_there_is_one_candidate():
    embeddings = torch.ones(3, 4) / 2
    own = [torch.tensor([0]), torch.tensor([0, 1]), torch.tensor([0, 1, 2])]
    metrics = ranking_metrics(embeddings, embeddings, torch.arange(3), torch.arange(3), [2], own_candidates=own)
    assert metrics["precision@1"].tolist() == [1, 0, 0]
    assert metrics["recall@2"].tolist() == [1, 1, 0]


def test_maxsim_gives_each_query_path_its_best_target_path():
    generator = torch.Generator().manual_seed(0)
    queries, candidates = integers(generator, 4, 3, 5), integers(generator, 6, 3, 5)
    scores = similarity(queries, candidates)
    for i, j in itertools.product(range(4), range(6)):
        best = [max(float(queries[i, k] @ candidates[j, path]) for path in range(3)) for k in range(3)]
        assert float(scores[i, j]) == pytest.approx(sum(best) / 3, abs=1e-5)  # float32 division of a number below 60


def test_maxsim_of_one_path_is_the_dot_product():
    generator = torch.Generator().manual_seed(1)
    queries, candidates = integers(generator, 4, 1, 5), integers(generator, 6, 1, 5)
    assert torch.equal(similarity(queries, candidates), queries[:, 0] @ candidates[:, 0].T)


@pytest.mark.parametrize("paths", [None, 3])
def test_a_collapsed_model_gets_the_worst_rank_and_never_full_marks(paths):
    row = torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(0)), dim=0)
    embeddings = row.expand(20, 64) if paths is None else row.expand(20, paths, 64)
    metrics = ranking_metrics(embeddings, embeddings, torch.arange(20), torch.arange(20), [1, 10, 20])
    assert float(metrics["recall@1"].sum()) == float(metrics["recall@10"].sum()) == 0
    assert metrics["mrr"].tolist() == pytest.approx([1 / 20] * 20, abs=EXACT)


def test_rounding_noise_does_not_break_ties():
    row = torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(0)), dim=0)
    candidates = row.expand(20, 64) * (1 - torch.linspace(0, 1e-7, 20)[:, None])
    metrics = ranking_metrics(row[None], candidates, torch.tensor([0]), torch.arange(20), [1])
    assert float(metrics["mrr"]) == pytest.approx(1 / 20, abs=EXACT)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_embeddings_that_are_not_finite_are_refused(bad):
    embeddings = torch.eye(3)
    broken = embeddings.clone()
    broken[1, 2] = bad
    for pair in [(embeddings, broken), (broken, embeddings)]:
        with pytest.raises(ValueError, match="NaN or infinity"):
            ranking_metrics(*pair, torch.arange(3), torch.arange(3))


def test_ranking_without_candidates_is_refused_and_without_queries_gives_no_rows():
    with pytest.raises(ValueError, match="at least one candidate"):
        ranking_metrics(torch.zeros(2, 3), torch.zeros(0, 3), torch.arange(2), torch.zeros(0, dtype=torch.int64))
    metrics = ranking_metrics(torch.zeros(0, 3), torch.zeros(2, 3), torch.zeros(0, dtype=torch.int64), torch.arange(2))
    assert {name: len(values) for name, values in metrics.items()} == dict.fromkeys(metrics, 0)
    assert metrics.keys() == chance_metrics(torch.zeros(0, dtype=torch.int64), 2).keys()


@pytest.mark.parametrize("relevant", range(7))
def test_chance_is_the_mean_over_all_orders_of_the_candidates(relevant):
    m = 6
    orders = np.array(list(itertools.permutations(range(m))), dtype=float)
    flags = np.broadcast_to(np.arange(m) < relevant, orders.shape)
    expected = plain_metrics(orders, flags, [1, 3, 10])
    actual = chance_metrics(torch.tensor([relevant]), m, [1, 3, 10])
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        assert float(actual[name]) == pytest.approx(float(np.mean(values)), abs=1e-11), name  # the mean sums 720 terms


def test_chance_is_told_for_each_query_by_its_own_number_of_relevant_candidates():
    together = chance_metrics(torch.tensor([3, 1, 3]), 50, [5])
    alone = [chance_metrics(torch.tensor([count]), 50, [5]) for count in (3, 1, 3)]
    for name, values in together.items():
        assert values.tolist() == [float(single[name]) for single in alone]


def test_chance_among_own_candidates_is_that_of_their_number():
    together = chance_metrics(torch.tensor([1, 1, 2]), torch.tensor([4, 20, 4]), [5])
    alone = [chance_metrics(torch.tensor([count]), size, [5]) for count, size in ((1, 4), (1, 20), (2, 4))]
    assert together.pop("precision@1").tolist() == [1 / 4, 1 / 20, 2 / 4]
    for name, values in together.items():
        assert values.tolist() == [float(single[name]) for single in alone]


def test_path_figures_of_collapsed_and_rotated_and_independent_paths():
    generator = torch.Generator().manual_seed(0)
    paths = torch.nn.functional.normalize(torch.randn(400, 2, 16, generator=generator), dim=-1)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    alike = path_figures(paths[:, :1].expand(400, 2, 16))
    turned = path_figures(torch.stack([paths[:, 0], paths[:, 0] @ rotation], dim=1))
    apart = path_figures(paths)
    assert [alike[name] for name in ("path_cosine", "path_cka", "path_r2")] == pytest.approx([1, 1, 1], abs=2e-3)
    assert [turned[name] for name in ("path_cka", "path_r2")] == pytest.approx([1, 1], abs=2e-3)
    assert abs(turned["path_cosine"]) < 0.4, "a cosine does not see a rotation"
    # A correlation over 400 rows has an error of 1 / sqrt(400) at most.
    assert max(map(abs, apart.values())) < 0.2
    offset = path_figures(paths + torch.tensor([[0.0], [5.0]]).repeat(1, 16))
    assert offset["path_cosine"] == pytest.approx(apart["path_cosine"], abs=1e-5)
