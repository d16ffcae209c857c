from itertools import islice

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pdfx.config import DataSection
from pdfx.data.loader import rank_requests
from pdfx.data.order import CanonicalOrder, Mixture, random_permutation

SMALL_SHARDS = st.lists(st.integers(0, 20), min_size=1, max_size=12)
ONE_HUGE_SHARD = st.tuples(SMALL_SHARDS, st.integers(200, 400)).map(lambda parts: [*parts[0], parts[1]])
LAYOUTS = st.one_of(SMALL_SHARDS, ONE_HUGE_SHARD).filter(any)
SETTINGS = {"seed": st.integers(0, 2**63), "span_samples": st.integers(1, 12), "window_spans": st.integers(1, 8)}


def take(order: CanonicalOrder, start: int, world_size: int, pairs: int, steps: int) -> list[int]:
    """What all ranks together read in ``steps`` steps, in the order of ranks."""
    mixture = Mixture([order], [len(order)], 4, order.seed)
    ranks = [list(islice(rank_requests(mixture, start, rank, world_size, pairs), steps)) for rank in range(world_size)]
    return [number for step in zip(*ranks, strict=True) for places in step for _, number in places]


@given(LAYOUTS, st.integers(0, 3), st.fixed_dictionaries(SETTINGS))
@settings(max_examples=60)
def test_every_sample_comes_exactly_once_in_every_epoch(sizes, epoch, options):
    order = CanonicalOrder(sizes, **options)
    n = sum(sizes)
    assert len(order) == n
    assert sorted(order.sample(position) for position in range(epoch * n, (epoch + 1) * n)) == list(range(n))


@given(
    LAYOUTS,
    st.integers(1, 16),
    st.integers(1, 5),
    st.integers(1, 16),
    st.integers(1, 5),
    st.integers(0, 6),
    st.fixed_dictionaries(SETTINGS),
)
@settings(max_examples=60)
def test_a_stop_and_another_world_size_neither_lose_nor_repeat_a_sample(
    sizes, world, pairs, other_world, other_pairs, steps, options
):
    first = take(CanonicalOrder(sizes, **options), 0, world, pairs, steps)
    rest = take(CanonicalOrder(sizes, **options), len(first), other_world, other_pairs, 4)
    alone = CanonicalOrder(sizes, **options)
    assert first + rest == [alone.sample(position) for position in range(len(first) + len(rest))]


@given(LAYOUTS, st.fixed_dictionaries(SETTINGS), st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_a_position_has_one_sample_whatever_was_asked_before(sizes, options, random):
    forward = CanonicalOrder(sizes, **options)
    expected = [forward.sample(position) for position in range(3 * sum(sizes))]
    positions = list(range(3 * sum(sizes)))
    random.shuffle(positions)
    jumping = CanonicalOrder(sizes, **options)
    assert all(jumping.sample(position) == expected[position] for position in positions[:200])


@given(LAYOUTS, st.integers(1, 12), st.integers(1, 8))
@settings(max_examples=40)
def test_samples_stay_within_the_window_of_their_span(sizes, span_samples, window_spans):
    assume(sum(sizes) > 1)
    order = CanonicalOrder(sizes, seed=3, span_samples=span_samples, window_spans=window_spans)
    spans, start = {}, 0
    for size in sizes:
        for offset in range(0, size, span_samples):
            for number in range(start + offset, start + min(offset + span_samples, size)):
                spans[number] = start + offset
        start += size
    sequence = [spans[order.sample(position)] for position in range(sum(sizes))]
    # A window holds whole spans, so the sequence falls into runs of window_spans distinct spans that share none with
    # one another.
    seen: set[int] = set()
    window: set[int] = set()
    missing = 0
    for span in sequence:
        if missing == 0 and len(window) == window_spans:
            seen, window = seen | window, set()
        if span not in window:
            assert span not in seen
            window.add(span)
            missing += sum(1 for owner in spans.values() if owner == span)
        missing -= 1
    assert len(seen | window) == len(set(spans.values()))


def test_the_order_changes_with_the_epoch_and_the_seed():
    order, other = (CanonicalOrder([40, 0, 25], seed=seed, span_samples=4, window_spans=5) for seed in (0, 1))
    first, second = ([order.sample(epoch * 65 + place) for place in range(65)] for epoch in (0, 1))
    assert first != second
    assert first != [other.sample(place) for place in range(65)]


def test_the_order_is_mixed_across_shards():
    order = CanonicalOrder([500, 500], seed=0, span_samples=10, window_spans=20)
    head = [order.sample(position) < 500 for position in range(200)]
    # 20 of 100 spans, half of them the first shard's: a mean of 10 and a deviation of 2.0, so none or all would be 5
    # deviations off.
    assert 0 < sum(head) < 200
    assert any(head[i] != head[i + 1] for i in range(20))


def test_the_order_is_the_one_of_earlier_versions():
    """A checkpoint resumes by position, so a change of this sequence would break every run under way."""
    order = CanonicalOrder([7, 0, 6], seed=42, span_samples=3, window_spans=2)
    assert [order.sample(position) for position in range(26)] == [
        10,
        12,
        11,
        6,
        4,
        9,
        7,
        3,
        5,
        8,
        0,
        1,
        2,
        10,
        11,
        8,
        9,
        7,
        12,
        5,
        3,
        4,
        6,
        1,
        0,
        2,
    ]


def test_permutations_of_different_purposes_and_counters_differ():
    streams = [
        random_permutation(50, 0, purpose, *counters)
        for purpose, *counters in (("spans",), ("windows",), ("spans", 1), ("spans", 0, 1))
    ]
    assert len({tuple(stream) for stream in streams}) == 4
    assert all(np.array_equal(np.sort(stream), np.arange(50)) for stream in streams)


def test_permutations_are_uniform():
    counts = np.zeros((4, 4))
    draws = 4000
    for counter in range(draws):
        counts[np.arange(4), random_permutation(4, 1, "test", counter)] += 1
    # Each cell is binomial (4000, 1/4): deviation 27.4; 5 deviations have a chance below 1e-5 over 16 cells, and the
    # seed is fixed.
    assert np.abs(counts - draws / 4).max() < 5 * np.sqrt(draws * 3 / 16)


def test_no_samples_at_all_are_refused():
    with pytest.raises(ValueError, match="no samples"):
        CanonicalOrder([0, 0], seed=0, span_samples=1, window_spans=1)


def test_with_the_default_window_a_samples_place_in_the_epoch_says_nothing_of_its_place_in_the_source():
    defaults = DataSection(train="unused")
    order = CanonicalOrder([2000] * 100, 7, defaults.span_samples, defaults.window_spans)
    epoch = np.array([order.sample(position) for position in range(len(order))])
    # Spans are permuted whole: the correlation of 3,200 independent draws has a deviation of 0.018.
    assert abs(np.corrcoef(np.arange(len(epoch)), epoch)[0, 1]) < 5 / np.sqrt(3200)
    # A window of 256 spans holds 92 of 100 shards in the mean, so that a batch of 128 has 69 of them; 72 in a full
    # permutation.
    shards = [len(np.unique(batch // 2000)) for batch in epoch[:128_000].reshape(-1, 128)]
    assert np.mean(shards) > 60
