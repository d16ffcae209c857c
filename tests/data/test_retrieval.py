import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_shards import ByteProcessor, damage_image, make_shards, write_records

from data_tools.build.builder import build_shards
from pdfx.data import FILLER, ShardedDataset, iterate_inputs, retrieval_items, share_of_rank
from pdfx.errors import UserError


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Seven queries over three targets; one target is named, the others are known by their content."""
    folder = tmp_path_factory.mktemp("evaluation")
    texts = ["red", "green", "red", "blue", "green", "red", "blue"]
    records = [{"query": {"text": f"query {i}"}, "target": {"text": text}} for i, text in enumerate(texts)]
    for record in records:
        if record["target"]["text"] == "blue":
            record["target_id"] = "colour-blue"
    build_shards(write_records(folder, records), folder, folder / "shards", 3)
    return folder / "shards"


CANDIDATE_RECORDS = [
    {
        "key": "ask-a",
        "query": {"text": "1"},
        "target": {"text": "A"},
        "target_id": "a",
        "candidates": ["a", "d", "b", "d"],
    },
    {"key": "only-b", "target": {"text": "B"}, "target_id": "b"},
    {"key": "ask-c", "query": {"text": "2"}, "target": {"text": "C"}, "target_id": "c"},
    {"key": "ask-a-again", "query": {"text": "3"}, "target": {"text": "A"}, "target_id": "a", "candidates": ["c", "a"]},
    {"key": "only-d", "target": {"text": "D"}, "target_id": "d"},
]


def built(folder, records) -> ShardedDataset:
    build_shards(write_records(folder, records), folder, folder / "shards", 2)
    return ShardedDataset(folder / "shards")


def decode(inputs) -> list[str]:
    return [bytes(row[row > 0].tolist()).decode() for row in inputs["input_ids"]]


def test_every_query_and_every_distinct_target_comes_once(shards):
    queries, targets, _ = retrieval_items(ShardedDataset(shards))
    assert queries.samples.tolist() == list(range(7))
    assert targets.samples.tolist() == [0, 1, 3]
    assert [targets.samples[list(targets.target_ids).index(target_id)] for target_id in queries.target_ids] == [
        0,
        1,
        0,
        3,
        1,
        0,
        3,
    ]


def test_records_without_a_query_are_searched_in_and_do_not_ask(tmp_path):
    pairs = [{"query": {"text": f"query {i}"}, "target": {"text": f"target {i}"}} for i in range(2)]
    records = [{"target": {"text": "zero"}}, *pairs, {"target": {"text": "last"}}]
    queries, targets, _ = retrieval_items(built(tmp_path, records))
    assert queries.samples.tolist() == [1, 2] and targets.samples.tolist() == [0, 1, 2, 3]
    assert queries.target_ids.tolist() == targets.target_ids[1:3].tolist()
    assert queries.candidates is None


def test_candidates_are_the_rows_of_the_targets_that_they_name(tmp_path):
    dataset = built(tmp_path, CANDIDATE_RECORDS)
    queries, targets, _ = retrieval_items(dataset)
    assert queries.samples.tolist() == [0, 2, 3]
    names = [record.target_id for _, record in dataset.records(targets.samples)]
    assert names == ["a", "b", "c", "d"]
    starts = queries.candidates.starts.tolist()
    rows = [queries.candidates.rows[start:stop].tolist() for start, stop in itertools.pairwise(starts)]
    # Naming a candidate twice counts once; a query that names none is ranked against all.
    assert [[names[row] for row in own] for own in rows] == [["a", "b", "d"], ["a", "b", "c", "d"], ["a", "c"]]


@pytest.mark.parametrize(
    ("candidates", "sentence"),
    [
        (["b"], "candidates of sample 'ask-a' lack its own target"),
        (["a", "x", "y", "b"], "Of the 4 candidates of sample 'ask-a' 2 are the target of no sample"),
    ],
)
def test_candidates_that_cannot_be_ranked_are_refused_by_key(tmp_path, candidates, sentence):
    records = [
        record | ({"candidates": candidates} if record["key"] == "ask-a" else {}) for record in CANDIDATE_RECORDS
    ]
    with pytest.raises(UserError, match=f"{sentence}.*Build the shards again"):
        retrieval_items(built(tmp_path, records))


def test_data_without_any_query_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no query"):
        retrieval_items(built(tmp_path, [{"target": {"text": "alone"}}]))


@pytest.mark.process
@pytest.mark.parametrize("num_workers", [0, 1])
def test_inputs_come_in_the_order_asked_for(shards, num_workers):
    dataset = ShardedDataset(shards)
    batches = iterate_inputs(dataset, np.array([3, 0, FILLER, 6, 1]), "target", ByteProcessor(), 2, num_workers)
    assert [decode(batch.inputs) for batch in batches] == [["tblue", "tred"], ["t", "tblue"], ["tgreen"]]
    assert [decode(batch.inputs) for batch in iterate_inputs(dataset, [5], "query", ByteProcessor(), 2)] == [
        ["qquery 5"]
    ]


@given(st.integers(0, 50), st.integers(1, 16))
def test_shares_of_ranks_are_equally_long_and_hold_everything_once_in_order(n, world_size):
    shares = [share_of_rank(np.arange(n), rank, world_size) for rank in range(world_size)]
    assert {len(share) for share in shares} == {-(-n // world_size)}
    joined = np.concatenate(shares)
    assert joined[joined != FILLER].tolist() == list(range(n))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_run_alike_batches_and_together_read_everything_once(shards, world_size):
    dataset = ShardedDataset(shards)
    for side, items in zip(("query", "target"), retrieval_items(dataset)[:2], strict=True):
        shares = [share_of_rank(items.samples, rank, world_size) for rank in range(world_size)]
        ranks = [
            [decode(batch.inputs) for batch in iterate_inputs(dataset, share, side, ByteProcessor(), 2)]
            for share in shares
        ]
        assert len({tuple(map(len, batches)) for batches in ranks}) == 1
        read = [text for batches in ranks for batch in batches for text in batch if len(text) > 1]
        assert read == [side[0] + dataset.read_item(number, side)["text"] for number in items.samples]


def test_only_the_side_that_is_read_needs_sound_images_and_damage_is_told_by_name(tmp_path):
    folder = make_shards(tmp_path)
    damage_image(folder, 4)
    dataset = ShardedDataset(folder)
    for side, problems in (("query", {}), ("target", {4: "'sample-004'"})):
        batches = list(iterate_inputs(dataset, range(25), side, ByteProcessor(), 5))
        assert len(batches) == 5 and all(len(batch.inputs["input_ids"]) == 5 for batch in batches)
        found = {sample: sentence for batch in batches for sample, sentence in batch.problems.items()}
        assert found.keys() == problems.keys() and all(name in found[sample] for sample, name in problems.items())
