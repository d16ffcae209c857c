from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pdfx.data.numbers import key_number, repeated_keys


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["a", "b", "c", "d", "e", ""]), max_size=30), st.booleans())
def test_each_later_bearer_of_a_key_is_told_once_with_the_first_one(keys, collide):
    numbers = np.array([(7 if collide and key else key_number(key)) for key in keys], dtype=np.int64)
    expected = {(key, keys.index(key), i) for i, key in enumerate(keys) if key and keys.index(key) < i}
    found = list(repeated_keys(numbers, keys.__getitem__))
    assert (set(found), len(found)) == (expected, len(expected))


def test_only_samples_with_equal_numbers_are_asked_for_their_keys():
    keys = [f"key-{i}" for i in range(1000)] + ["key-500"]
    asked = Counter()

    def key_of(sample):
        asked[sample] += 1
        return keys[sample]

    assert list(repeated_keys(np.array([key_number(key) for key in keys]), key_of)) == [("key-500", 500, 1000)]
    assert asked == {500: 1, 1000: 1}
