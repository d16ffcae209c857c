import pytest

from pdfx.data import CorruptSampleGuard
from pdfx.errors import UserError


def test_a_share_of_zero_forgives_nothing():
    guard = CorruptSampleGuard(0.0)
    guard.add(1000, 0)
    with pytest.raises(UserError, match="1 of the 1001 samples"):
        guard.add(1, 1)


def test_a_single_corrupt_sample_is_forgiven_however_early():
    CorruptSampleGuard(0.001).add(1, 1)


def test_the_share_is_judged_over_everything_read_so_far():
    guard = CorruptSampleGuard(0.01)
    guard.add(1000, 9)
    guard.add(200, 3)  # 12 of 1200
    with pytest.raises(
        UserError, match="13 of the 1201 samples read so far could not be used, and data.max_corrupt_share is 0.01"
    ):
        guard.add(1, 1)


def test_a_share_of_one_forgives_everything():
    CorruptSampleGuard(1.0).add(100, 100)


def test_the_stop_names_the_latest_problems():
    guard = CorruptSampleGuard(0.1)
    guard.add(8, 1, ["Sample 'first' cannot be used."])
    with pytest.raises(UserError, match="'first'.*'second'.*pdfx shards check --full"):
        guard.add(8, 1, ["Sample 'second' cannot be used."])


def test_counts_go_on_from_a_state():
    guard = CorruptSampleGuard(0.1)
    guard.add(20, 2)
    with pytest.raises(UserError, match="3 of the 21"):
        CorruptSampleGuard(0.1, guard.state_dict()).add(1, 1)
