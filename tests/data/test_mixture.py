"""The mixture of data sets: shares, homogeneous sub-batches, and a sequence that neither ranks nor a stop change."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdfx.data.loader import rank_requests
from pdfx.data.order import CanonicalOrder, Mixture, Start, quotas

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=5)
QUOTAS = st.lists(st.integers(1, 80), min_size=5, max_size=5)
SUB_BATCHES = st.integers(1, 9)


def mixture(sizes: list[int], shares: list[int], sub_batch: int, seed: int = 3, start: Start | None = None) -> Mixture:
    orders = [
        CanonicalOrder([size], seed, span_samples=4, window_spans=3, stream=f"/{number}")
        for number, size in enumerate(sizes)
    ]
    return Mixture(orders, shares[: len(sizes)], sub_batch, seed, start)


def take(mixed: Mixture, start: int, world_size: int, pairs: int, steps: int) -> list[tuple[int, int]]:
    """What all ranks together read in ``steps`` steps, in the order of ranks."""
    ranks = [list(islice(rank_requests(mixed, start, rank, world_size, pairs), steps)) for rank in range(world_size)]
    return [place for step in zip(*ranks, strict=True) for places in step for place in places]


def own_sequences(places: list[tuple[int, int]], count: int) -> list[list[int]]:
    return [[number for source, number in places if source == own] for own in range(count)]


@given(SIZES, QUOTAS, SUB_BATCHES)
@settings(max_examples=60)
def test_every_data_set_is_read_in_its_own_order_each_sample_once_before_any_is_repeated(sizes, shares, sub_batch):
    mixed = mixture(sizes, shares, sub_batch)
    count = 3 * sum(sizes) + 50
    for size, order, own in zip(sizes, mixed.orders, own_sequences(mixed.samples(0, count), len(sizes)), strict=True):
        assert own == [order.sample(position) for position in range(len(own))]
        for start in range(0, len(own) - size + 1, size):
            assert sorted(own[start : start + size]) == list(range(size))


@given(SIZES, QUOTAS, SUB_BATCHES, st.integers(1, 4))
@settings(max_examples=60)
def test_by_the_end_of_each_epoch_every_data_set_gave_its_share_but_for_what_fills_no_sub_batch(
    sizes, shares, sub_batch, epochs
):
    mixed = mixture(sizes, shares, sub_batch)
    whole = [epochs * quota // sub_batch * sub_batch for quota in shares[: len(sizes)]]
    counts = Counter(source for source, _ in mixed.samples(0, sum(whole)))
    assert [counts[source] for source in range(len(sizes))] == whole


@given(SIZES, QUOTAS, SUB_BATCHES)
@settings(max_examples=40)
def test_sub_batches_come_from_one_data_set_each(sizes, shares, sub_batch):
    places = mixture(sizes, shares, sub_batch).samples(0, 12 * sub_batch)
    for start in range(0, len(places), sub_batch):
        assert len({source for source, _ in places[start : start + sub_batch]}) == 1


@given(
    SIZES,
    QUOTAS,
    SUB_BATCHES,
    st.integers(1, 16),
    st.integers(1, 5),
    st.integers(1, 16),
    st.integers(1, 5),
    st.integers(0, 8),
)
@settings(max_examples=80)
def test_a_stop_and_another_world_size_neither_lose_nor_repeat_a_sample(
    sizes, shares, sub_batch, world, pairs, other_world, other_pairs, steps
):
    first = take(mixture(sizes, shares, sub_batch), 0, world, pairs, steps)
    rest = take(mixture(sizes, shares, sub_batch), len(first), other_world, other_pairs, 4)
    assert first + rest == mixture(sizes, shares, sub_batch).samples(0, len(first) + len(rest))


@given(SIZES, QUOTAS, st.lists(st.tuples(SUB_BATCHES, st.integers(0, 150)), min_size=2, max_size=4))
@settings(max_examples=80)
def test_sub_batches_of_another_size_go_on_with_every_data_set_where_it_is(sizes, shares, stretches):
    places, start = [], None
    for sub_batch, count in stretches:
        mixed = mixture(sizes, shares, sub_batch, start=start)
        places += mixed.samples(len(places), count)
        assert mixed.consumed(len(places)) == [len(own) for own in own_sequences(places, len(sizes))]
        start = Start.from_plain(mixed.restart(len(places)).to_plain())
    for order, own in zip(mixed.orders, own_sequences(places, len(sizes)), strict=True):
        assert own == [order.sample(position) for position in range(len(own))]


@given(SIZES, QUOTAS, SUB_BATCHES, st.integers(0, 400))
@settings(max_examples=60)
def test_what_was_consumed_is_what_was_handed_out(sizes, shares, sub_batch, count):
    mixed = mixture(sizes, shares, sub_batch)
    counts = Counter(source for source, _ in mixed.samples(0, count))
    assert mixed.consumed(count) == [counts[source] for source in range(len(sizes))]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=9).filter(any), SUB_BATCHES, SUB_BATCHES)
@settings(max_examples=40)
def test_one_data_set_has_its_canonical_order_whatever_the_sub_batches(shards, sub_batch, other):
    order = CanonicalOrder(shards, seed=1, span_samples=3, window_spans=2)
    expected = [(0, order.sample(position)) for position in range(70)]
    first = Mixture([order], [order.samples], sub_batch, 1)
    second = Mixture([order], [order.samples], other, 1, first.restart(31))
    assert first.samples(0, 31) + second.samples(31, 39) == expected


def test_a_position_far_away_costs_no_walk_through_the_epochs_before_it():
    mixed = mixture([10, 1_000_000], [10, 1_000_000], 32)
    position = 10**12
    assert mixed.samples(position, 3) == mixed.samples(position - 1, 4)[1:]
    consumed = mixed.consumed(position)
    assert sum(consumed) == position
    # The shares are kept to a sub-batch at the end of each epoch; in between the order within the epoch decides.
    assert abs(consumed[0] - position * 10 / 1_000_010) <= 10 + 32


def test_data_sets_are_interleaved_and_in_another_order_in_each_epoch():
    mixed = mixture([320, 320], [320, 320], 32)
    first, second = ([mixed.samples(epoch * 640 + block * 32, 1)[0][0] for block in range(20)] for epoch in (0, 1))
    assert Counter(first) == Counter(second) == {0: 10, 1: 10}
    assert first != second
    # A random order of 10 and 10 has 10.0 changes in the mean, with a deviation of 2.2.
    assert sum(a != b for a, b in zip(first, first[1:], strict=False)) >= 3


def test_without_weights_every_data_set_gives_all_its_samples_once():
    assert quotas([5, 100, 7], [None] * 3, [None] * 3, 1.0) == [5, 100, 7]
    assert quotas([5, 100, 7], [None] * 3, [None, 30, None], 1.0) == [5, 30, 7]


def test_weights_are_shares_of_an_epoch():
    assert quotas([100, 300], [3.0, 1.0], [None, None], 1.0) == [300, 100]
    assert quotas([100, 300], [3.0, 1.0], [50, None], 1.0) == [50, 88]


def test_a_high_temperature_makes_shares_equal_and_a_low_one_keeps_the_sizes():
    sizes = [10, 1000, 100_000]
    equal = quotas(sizes, [None] * 3, [None] * 3, 1e9)
    assert max(equal) - min(equal) <= 1
    middle = quotas(sizes, [None] * 3, [None] * 3, 2.0)
    roots = np.sqrt(sizes)
    assert middle == pytest.approx((roots / roots.sum() * sum(sizes)).tolist(), abs=0.51)
