"""Errors and p values of comparisons, against plain forms and against how often they are wrong."""

import numpy as np
import pytest
from scipy import stats

from pdfx.study.comparison import (
    Difference,
    degrees_of_freedom,
    differences,
    holm,
    of_ranks,
    standard_error,
    two_sided,
    values,
)
from pdfx.study.plan import StudySection
from pdfx.study.records import Record

STUDY = StudySection(recipe="r", out="o", seeds=[1, 2, 3], rows={"a": {}, "b": {}}, baselines=["a"], bootstraps=20_000)


def test_the_error_of_items_alone_is_that_of_their_mean():
    paired = np.random.default_rng(0).normal(size=(1, 200))
    assert standard_error(paired, 20_000) == pytest.approx(paired.std() / np.sqrt(200), rel=0.03)


def test_the_error_of_seeds_alone_is_that_of_their_mean():
    paired = np.array([[0.1], [0.4], [0.3], [0.9], [0.2]])
    assert standard_error(paired, 20_000) == pytest.approx(paired.std(ddof=1) / np.sqrt(5), rel=0.03)


def test_seeds_and_items_add_up():
    generator = np.random.default_rng(1)
    seeds, items = generator.normal(size=(6, 1)), 3 * generator.normal(size=(1, 150))
    expected = seeds.var(ddof=1) / 6 + items.var() / 150
    assert standard_error(seeds + items, 20_000) ** 2 == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("degrees", [2.3, 4, 30, 1e5])
@pytest.mark.parametrize("ratio", [0.3, -1.7, 4.2])
def test_p_values_are_those_of_students_distribution(degrees, ratio):
    assert two_sided(ratio * 0.01, 0.01, degrees) == pytest.approx(2 * stats.t.sf(abs(ratio), degrees), abs=1e-6)


def test_rows_that_differ_by_chance_are_seldom_called_different():
    """Seeds and items both vary; at a level of .05, 300 trials reject 15 on average, and over 28 once in a thousand."""
    generator = np.random.default_rng(2)
    rejected = 0
    for _ in range(300):
        paired = generator.normal(size=(5, 1)) + 5 * generator.normal(size=(1, 80)) + 5 * generator.normal(size=(5, 80))
        p = two_sided(float(paired.mean()), standard_error(paired, 1000), degrees_of_freedom(paired))
        rejected += p < 0.05
    assert rejected <= 28


def test_degrees_follow_the_part_that_varies():
    generator = np.random.default_rng(3)
    items = generator.normal(size=(1, 100)) + 1e-6 * generator.normal(size=(5, 1))
    seeds = generator.normal(size=(5, 1)) + 1e-6 * generator.normal(size=(1, 100))
    assert degrees_of_freedom(items) == pytest.approx(99, rel=1e-3)
    assert degrees_of_freedom(seeds) == pytest.approx(4, rel=1e-3)


def test_holms_correction():
    found = [Difference(0, 1, p, 3) for p in (0.01, 0.04, 0.03, 0.9)]
    holm(found)
    assert [one.p for one in found] == pytest.approx([0.04, 0.09, 0.09, 0.9])
    assert [one.significant for one in found] == [True, False, False, False]


def test_ranks_become_metrics_and_none_is_zero():
    ranks = np.array([1, 2, 11, 0], dtype=np.uint16)
    assert of_ranks(ranks, "mrr").tolist() == pytest.approx([1, 0.5, 1 / 11, 0])
    assert of_ranks(ranks, "recall@1").tolist() == [1, 0, 0, 0]
    assert of_ranks(ranks, "recall@10").tolist() == [1, 1, 0, 0]


def record(seed: int, better: int) -> Record:
    """Two items; the first has two queries. Path 1 finds nothing first."""
    ask = {
        "fused": [4 - better, 2, 1],
        "path_0": [4, 2, 1],
        "path_1": [2, 2, 2],
        "items": [0, 0, 1],
    }
    answer = {"fused": [1, 5 - better], "path_0": [1, 5], "path_1": [2, 2], "items": [0, 1]}
    named = {"query_to_target": ask, "target_to_query": answer}
    return Record(
        {"seed": seed},
        {
            f"t/{way}/{key}": np.array(ranks, dtype=np.uint16)
            for way, own in named.items()
            for key, ranks in own.items()
        },
    )


def test_an_items_value_is_the_mean_over_its_queries_and_both_directions():
    assert values(record(1, 0), "t", "fused", "mrr").tolist() == pytest.approx(
        [((0.25 + 0.5) / 2 + 1) / 2, (1 + 0.2) / 2]
    )
    single = values(record(1, 0), "t", "single", "mrr")
    assert single.tolist() == pytest.approx([(0.4375 + 0.75) / 2, (0.75 + (0.2 + 0.5) / 2) / 2])


def test_differences_are_paired_by_seed():
    rows = {"a": {1: record(1, 0), 3: record(3, 0)}, "b": {1: record(1, 1), 2: record(2, 1), 3: record(3, 1)}}
    found = differences(STUDY, rows, "a")
    assert list(found) == [("b", "t")]
    one = found["b", "t"]
    first = ((1 / 3 + 1 / 2) / 2 - (1 / 4 + 1 / 2) / 2) / 2
    second = (1 / 4 - 1 / 5) / 2
    assert one.mean == pytest.approx((first + second) / 2) and one.seeds == 2
