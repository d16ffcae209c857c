import io
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_shards import ByteProcessor, picture

from pdfx.data import Problem, Sample, SampleError
from pdfx.data.batch import collate, collate_by_tokens, cut_by_tokens


def sample(i: int, negatives: int = 0, width: int = 12) -> Sample:
    image = Image.open(io.BytesIO(picture(i, width)))
    hard = [{"text": f"n{i}{m}", "images": []} for m in range(negatives)]
    return Sample(
        f"key-{i}",
        {"text": f"q{i}", "images": []},
        {"text": f"t{i}", "images": [image]},
        hard,
        100 + i,
        [1000 * i + m for m in range(negatives)],
        "s.tar",
    )


def texts(batch) -> list[str]:
    """Side and text of every item, put where its slot says."""
    placed: dict[int, str] = {}
    for chunk in batch.chunks:
        for slot, row in zip(chunk.slots.tolist(), chunk.inputs["input_ids"], strict=True):
            assert slot not in placed
            placed[slot] = bytes(row[row > 0].tolist()).decode()
    return [placed[slot] for slot in range(len(placed))]


@pytest.mark.parametrize("chunk_pairs", [1, 2, 3, 6])
@pytest.mark.parametrize("negatives", [0, 1, 2])
def test_slots_bring_every_item_to_its_place_whatever_the_chunks(chunk_pairs, negatives):
    batch = collate([sample(i, negatives) for i in range(6)], ByteProcessor(), chunk_pairs, negatives)
    assert len(batch.chunks) == 6 // chunk_pairs
    assert (batch.pairs, batch.negatives) == (6, negatives)
    expected = (
        [f"qq{i}" for i in range(6)]
        + [f"tt{i}" for i in range(6)]
        + [f"tn{i}{m}" for i in range(6) for m in range(negatives)]
    )
    assert texts(batch) == expected
    assert batch.target_ids.tolist() == [100 + i for i in range(6)]
    assert batch.negative_ids.tolist() == [[1000 * i + m for m in range(negatives)] for i in range(6)]
    assert batch.negative_valid.shape == (6, negatives)
    assert batch.valid.all()
    assert batch.negative_valid.all()
    assert batch.keys == [f"key-{i}" for i in range(6)]
    assert batch.problems == []


def test_missing_hard_negatives_are_masked_fillers_and_spare_ones_are_left_out():
    batch = collate([sample(0, 0), sample(1, 1), sample(2, 3)], ByteProcessor(), 3, 2)
    assert texts(batch)[6:] == ["t", "t", "tn10", "t", "tn20", "tn21"]
    assert batch.negative_valid.tolist() == [[False, False], [True, False], [True, True]]
    assert batch.negative_ids.tolist() == [[0, 0], [1000, 0], [2000, 2001]]


def test_a_corrupt_sample_becomes_a_filler_of_the_same_shape_and_is_told():
    batch = collate([sample(0, 1), SampleError("Sample 'bad' cannot be used.", "bad")], ByteProcessor(), 1, 1)
    assert texts(batch) == ["qq0", "q", "tt0", "t", "tn00", "t"]
    assert batch.valid.tolist() == [True, False]
    assert batch.negative_valid.tolist() == [[True], [False]]
    assert batch.keys == ["key-0", "bad"]
    assert batch.problems == [Problem("Sample 'bad' cannot be used.", "damaged")]


def test_a_sample_that_the_processor_refuses_is_found_and_becomes_a_filler():
    samples = [sample(0), sample(1, width=100), sample(2), SampleError("Sample 'bad' cannot be used.", "bad")]
    batch = collate(samples, ByteProcessor(max_width=64), 4, 0)
    assert texts(batch) == ["qq0", "q", "qq2", "q", "tt0", "t", "tt2", "t"]
    assert batch.valid.tolist() == [True, False, True, False]
    assert len(batch.problems) == 2
    assert (
        "s.tar, sample 'key-1' cannot be used: the processor refuses it (a picture is 100 pixels wide and 64 are "
        "allowed)" in batch.problems[0].sentence
    )


class RefusesTwo:
    def __call__(self, items, sides):
        if len(items) > 2:
            raise RuntimeError("too many items")
        return ByteProcessor()(items, sides)


def test_a_fault_of_no_single_sample_is_raised_as_it_is():
    with pytest.raises(RuntimeError, match="too many items"):
        collate([sample(0), sample(1)], RefusesTwo(), 2, 0)


def test_cut_texts_are_counted_over_all_chunks():
    samples = [sample(i) for i in range(4)]
    for i in (0, 3):
        samples[i].query["text"] = "long " * 20
    assert collate(samples, ByteProcessor(max_bytes=32), 2, 0).truncated == 2


def test_pairs_that_do_not_divide_into_chunks_are_refused():
    with pytest.raises(ValueError, match="3 pairs do not divide into chunks of 2"):
        collate([sample(i) for i in range(3)], ByteProcessor(), 2, 0)


def test_a_batch_moves_to_a_device_with_all_its_tensors():
    batch = collate([sample(0, 1), sample(1, 1)], ByteProcessor(), 1, 1)
    moved = batch.to("meta")
    tensors = [moved.target_ids, moved.negative_ids, moved.valid, moved.negative_valid]
    tensors += [tensor for chunk in moved.chunks for tensor in (chunk.slots, *chunk.inputs.values())]
    assert {tensor.device for tensor in tensors} == {torch.device("meta")}
    assert moved.keys == batch.keys
    assert batch.valid.device == torch.device("cpu")


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(1, 80))
def test_chunks_hold_every_item_once_within_the_budget_longest_first(lengths, limit):
    groups = cut_by_tokens(lengths, limit)
    assert sorted(item for group in groups for item in group) == list(range(len(lengths)))
    for group in groups:
        assert sum(lengths[item] for item in group) <= limit or len(group) == 1
    flat = [lengths[item] for group in groups for item in group]
    assert flat == sorted(flat, reverse=True)
    # A chunk is closed only where its next item does not fit, so two neighbours never fit into one.
    for group, following in itertools.pairwise(groups):
        assert sum(lengths[item] for item in group) + lengths[following[0]] > limit


def test_ordering_by_length_leaves_a_small_part_of_the_chunks_to_padding():
    lengths = torch.randint(1, 400, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    places = sum(max(lengths[item] for item in group) * len(group) for group in cut_by_tokens(lengths, 2000))
    # As they come, the items would fill half of the places: the mean of 1 to 400 is half of the longest.
    assert sum(lengths) / places > 0.9


@pytest.mark.parametrize("budget", [1, 8, 20, 10_000])
@pytest.mark.parametrize("negatives", [0, 2])
def test_a_token_budget_cuts_between_items_and_slots_bring_every_item_to_its_place(budget, negatives):
    samples = [sample(i, negatives) for i in range(5)] + [SampleError("Sample 'bad' cannot be used.", "bad")]
    samples[2].query["text"] = "longer " * 3
    processor = MaskingProcessor()
    cut, whole = collate_by_tokens(samples, processor, budget, negatives), collate(samples, processor, 6, negatives)
    assert texts(cut) == texts(whole)
    lengths = [chunk.inputs["attention_mask"].sum(1).tolist() for chunk in cut.chunks]
    assert all(sum(own) <= budget or len(own) == 1 for own in lengths)
    assert cut.oversized == sum(length > budget for own in lengths for length in own)
    assert (len(cut.chunks) == 1) == (budget == 10_000)
    for name in ("target_ids", "negative_ids", "valid", "negative_valid"):
        assert torch.equal(getattr(cut, name), getattr(whole, name))
    assert (cut.keys, cut.problems) == (whole.keys, whole.problems)


class MaskingProcessor(ByteProcessor):
    """Tells which tokens are padding, and selects items."""

    def __call__(self, items, sides):
        inputs, truncated = super().__call__(items, sides)
        return inputs | {"attention_mask": (inputs["input_ids"] > 0).long()}, truncated

    def select_items(self, inputs, chosen, images):
        return {name: tensor[chosen] for name, tensor in inputs.items()}
