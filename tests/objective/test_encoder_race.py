"""An encoder that learns fast does not get away from the term that should keep its paths apart."""

import pytest

from pdfx.study.encoder_race import race

DEFAULT = {"recent": {"rows": 1024}}
"""32 rows for each of 32 dimensions, twice as many as the default has for 128 dimensions; all of its rows would take
twice as long."""


def test_without_the_term_the_paths_depend_on_one_another():
    found = race(None, 32, 3e-3, 200)
    assert found["r2"] > 0.3 and found["recall"] >= 0.97


@pytest.mark.parametrize(("rate", "steps", "offset"), [(3e-4, 600, False), (3e-3, 200, False), (1e-2, 200, True)])
def test_neither_a_slow_nor_a_fast_encoder_gets_away_from_the_term(rate, steps, offset):
    found = race(DEFAULT, 32, rate, steps, offset)
    assert found["r2"] <= 0.05 and found["recall"] >= 0.97
