import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.build.ordered_workers import UNIT_SAMPLES, WorkUnit, drawn_samples, share_out, work_units
from pdfx.data.schema import ShardEntry, ShardIndex, fingerprint
from pdfx.errors import UserError


def index_of(sizes: list[int]) -> ShardIndex:
    entries = [ShardEntry(name=f"{i:05d}.tar", samples=size, bytes=0, sha256="0" * 64) for i, size in enumerate(sizes)]
    return ShardIndex(shards=entries, samples=sum(sizes), fingerprint=fingerprint(entries))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3 * UNIT_SAMPLES), max_size=6), st.data())
def test_parts_cover_every_sample_once_and_in_order(sizes, data):
    chosen = data.draw(st.none() | st.lists(st.integers(0, 5), unique=True))
    expected = [
        (shard, row) for shard, size in enumerate(sizes) if chosen is None or shard in chosen for row in range(size)
    ]
    parts = list(work_units(index_of(sizes), chosen))
    assert [(part.shard, row) for part in parts for row in range(part.start, part.stop)] == expected
    assert all(
        part.first == sum(sizes[: part.shard]) + part.start and part.stop - part.start <= UNIT_SAMPLES for part in parts
    )
    # Every shard has a part that begins it, an empty one too.
    assert [part.shard for part in parts if part.start == 0] == [
        shard for shard in range(len(sizes)) if chosen is None or shard in chosen
    ]


def number_and_process(part: WorkUnit) -> tuple[int, int]:
    return part.first, os.getpid()


def refuse_one(part: WorkUnit) -> None:
    if part.first == 512:
        raise UserError(f"Unit {part.first} is refused.")


PARTS = list(work_units(index_of([2000, 0, 300])))


@pytest.mark.process
def test_worker_processes_give_results_in_order():
    results = list(share_out(number_and_process, PARTS, workers=2))
    assert [part for part, _ in results] == PARTS
    assert [first for _, (first, _) in results] == [part.first for part in PARTS]
    assert os.getpid() not in {process for _, (_, process) in results}


@pytest.mark.process
def test_a_workers_refusal_arrives_as_the_sentence_it_is():
    with pytest.raises(UserError, match=r"^Unit 512 is refused\.$"):
        list(share_out(refuse_one, PARTS, workers=2))


@pytest.mark.parametrize("workers, parts", [(0, PARTS), (1, PARTS), (8, PARTS[:1])])
def test_no_process_is_started_where_there_is_nothing_to_share(workers, parts):
    assert {process for _, (_, process) in share_out(number_and_process, parts, workers)} == {os.getpid()}


@settings(max_examples=60)
@given(st.integers(0, 10**9), st.integers(0, 50))
def test_drawn_samples_are_distinct_ascending_and_always_the_same(samples, count):
    drawn = drawn_samples(samples, count)
    assert len(drawn) == min(samples, count)
    assert drawn == sorted(set(drawn)) == drawn_samples(samples, count)
    assert all(0 <= number < samples for number in drawn)
