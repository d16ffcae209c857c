from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.build.deduplicate import EarlierSamples
from data_tools.build.pack import Packed
from pdfx.data import numbers
from pdfx.data.numbers import FirstRecords
from pdfx.errors import UserError

hashes = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(hashes | st.integers(-5, 5), max_size=200), st.integers(1, 20))
@settings(max_examples=60)
def test_the_first_record_of_each_number_is_found_and_no_other(values, recent):
    with pytest.MonkeyPatch.context() as patch:
        # A real limit would need 65,536 hashes before anything is sorted.
        patch.setattr(numbers, "_RECENT", recent)
        first, expected = FirstRecords(), {}
        for number, value in enumerate(values):
            assert first.get(value) == expected.get(value)
            if value not in expected:
                first.add(value, number)
                expected[value] = number
        for value in range(-7, 8):
            assert first.get(value) == expected.get(value)
    assert len(first._recent) < recent


def test_a_million_hashes_take_16_bytes_each_and_few_arrays():
    first = FirstRecords()
    values = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 1_000_000)
    for start in range(0, len(values), 100_000):
        part = values[start : start + 100_000]
        first.extend(part, np.arange(start, start + len(part)))
    assert sum(table.numbers.nbytes + table.values.nbytes for table in first._tables) == 16_000_000
    assert len(first._tables) <= 5
    assert [first.get(int(values[i])) for i in (0, 99_999, 567_890, 999_999)] == [0, 99_999, 567_890, 999_999]


def packed(key: str, content: int) -> Packed:
    return Packed(key, b"", Counter(), content)


def test_what_was_saved_of_finished_shards_is_known_again(tmp_path):
    earlier = EarlierSamples(tmp_path, deduplicate=True)
    earlier.add(3, packed("a", 1))
    earlier.save("00000.tar")
    earlier.add(5, packed("b", 2))
    earlier.save("00001.tar")
    earlier.add(6, packed("unsaved", 3))
    again = EarlierSamples(tmp_path, deduplicate=True)
    for shard in ("00000.tar", "00001.tar"):
        again.restore(shard)
    assert again.find(packed("b", 9)).reason.startswith("its key 'b' is already that of record number 6")
    assert again.find(packed("c", 1)).reason == "its query and target are those of record number 4"
    assert again.find(packed("unsaved", 3)) is None


def test_contents_matter_only_where_they_are_asked_for(tmp_path):
    earlier = EarlierSamples(tmp_path, deduplicate=False)
    earlier.add(0, packed("a", 1))
    assert earlier.find(packed("b", 1)) is None
    assert earlier.find(packed("a", 2)).kind == "repeated key"


def test_what_was_saved_and_is_gone_is_named(tmp_path):
    with pytest.raises(UserError, match="00000.hashes.npy cannot be read.*--overwrite"):
        EarlierSamples(tmp_path, deduplicate=True).restore("00000.tar")
