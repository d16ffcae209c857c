"""Results of workers arrive as they were sent."""

import pickle
from dataclasses import dataclass

import pytest
import torch

from pdfx.data import Batch, Chunk, Problem
from pdfx.data.workers import Parcel

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int64,
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int16,
]


def sent(result):
    """As it comes out of another process: through bytes, but for the block, which is shared."""
    parcel = Parcel.of(result)
    return Parcel(*pickle.loads(pickle.dumps((parcel.skeleton, parcel.shapes))), parcel.block).open()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (5, 7), (3, 1, 2)])
def test_tensors_of_any_type_and_shape_arrive_as_they_were(dtype, shape):
    tensor = torch.randint(0, 2, shape).to(dtype)
    other = torch.arange(5)
    first, values = sent((other, {"tensor": tensor, "text": "words"}))
    assert torch.equal(first, other)
    assert values["text"] == "words"
    assert (values["tensor"].dtype, values["tensor"].shape) == (dtype, torch.Size(shape))
    assert torch.equal(values["tensor"], tensor)


def test_parts_of_larger_tensors_and_turned_ones_arrive_whole_and_alone():
    large = torch.arange(1000.0).reshape(10, 100)
    parcel = Parcel.of([large[2:4, 5:9], large.T[3], large[7]])
    assert parcel.block.nbytes < large.nbytes
    assert all(torch.equal(a, b) for a, b in zip(parcel.open(), [large[2:4, 5:9], large.T[3], large[7]], strict=True))


@dataclass
class Twice:
    left: torch.Tensor
    right: torch.Tensor


def test_a_tensor_that_is_there_twice_is_sent_once():
    tensor = torch.arange(6)
    result = sent(Twice(tensor, tensor))
    assert result.left is result.right


def test_a_batch_arrives_as_it_was():
    chunk = Chunk({"input_ids": torch.arange(6).reshape(2, 3), "pixel_values": torch.randn(4, 5)}, torch.tensor([0, 1]))
    none = torch.empty(1, 0, dtype=torch.int64)
    batch = Batch(
        [chunk],
        1,
        0,
        torch.tensor([7]),
        none,
        torch.tensor([True]),
        none.bool(),
        ["key"],
        [Problem("It is broken.", "damaged", 2)],
        3,
        1,
    )
    arrived = sent(batch)
    assert (arrived.keys, arrived.problems, arrived.truncated, arrived.oversized) == (batch.keys, batch.problems, 3, 1)
    assert torch.equal(arrived.chunks[0].inputs["pixel_values"], chunk.inputs["pixel_values"])
    assert torch.equal(arrived.negative_ids, none)
    assert arrived.negative_ids.shape == none.shape
