from array import array
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.inspect.measure import distinct_and_sharing, quantiles

PERCENTS = {"minimum": 0, "median": 50, "p95": 95, "maximum": 100}


@settings(max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=200))
def test_quantiles_of_counts_are_those_of_the_values(values):
    expected = [np.quantile(values, percent / 100, method="inverted_cdf") for percent in PERCENTS.values()]
    # numpy's float of 95 percent may lie a rounding error above a whole number of values; then its value is the next
    # one.
    exact = [sorted(values)[max(1, -(-len(values) * percent // 100)) - 1] for percent in PERCENTS.values()]
    found = list(quantiles(Counter(values), PERCENTS).values())
    assert found == exact
    assert all(a <= b for a, b in zip(found, expected, strict=True))


def test_quantiles_of_nothing_are_none():
    assert quantiles(Counter(), PERCENTS) is None


@settings(max_examples=60)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2), max_size=50))
def test_sharing_counts_all_bearers_of_a_repeated_number(numbers):
    counts = Counter(numbers)
    found = distinct_and_sharing(array("q", numbers))
    assert found == {"distinct": len(counts), "sharing": sum(count for count in counts.values() if count > 1)}
