"""The InfoNCE in blocks of rows against the dense softmax it stands for.

Legend: B rows, C candidates, K paths, D dimension. Float64 rounds at 1.1e-16; sums of fewer than 100 terms of size
below 100 and their exponentials stay within a few thousand roundings, so 1e-10 leaves two digits of room and still sees
any wrong term.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective.batches import LargestTensor
from torch.nn.functional import normalize

from pdfx.objective.contrastive import Exclusion, info_nce

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}


def dense(rows, candidates, log_temperature, exclusion):
    """Row by row, candidate by candidate, by the definition."""
    scores = torch.einsum("bkd,ckd->kbc", rows, candidates) / torch.exp(log_temperature)
    keep = torch.zeros(len(rows), len(candidates), dtype=torch.bool)
    for row in range(len(rows)):
        for candidate in range(len(candidates)):
            same = exclusion.row_ids is not None and exclusion.row_ids[row] == exclusion.candidate_ids[candidate]
            own = candidate == exclusion.positive_start + row
            keep[row, candidate] = own or bool(exclusion.valid[candidate] and not same)
    own = torch.arange(len(rows)) + exclusion.positive_start
    return -torch.log_softmax(scores.masked_fill(~keep, -torch.inf), dim=-1)[:, torch.arange(len(rows)), own].T


def example(seed, rows, before, after, paths, dimension, masked=True, invalid=True):
    generator = torch.Generator().manual_seed(seed)
    count = before + rows + after

    def embed(n):
        values = torch.randn(n, paths, dimension, generator=generator, dtype=torch.float64)
        return normalize(values, dim=-1).requires_grad_()

    valid = torch.rand(count, generator=generator) > 0.3 if invalid else torch.ones(count, dtype=torch.bool)
    valid[before : before + rows] = True
    ids = torch.randint(0, max(2, count // 2), (count,), generator=generator)
    ids_of = (ids[before : before + rows], ids) if masked else (None, None)
    log_temperature = torch.tensor(-1.5, dtype=torch.float64, requires_grad=True)
    return embed(rows), embed(count), log_temperature, Exclusion(before, valid, *ids_of)


def row_weights(rows):
    """Every row has its own weight, so that a gradient in the wrong place cannot hide."""
    return torch.linspace(0.5, 2.0, rows, dtype=torch.float64)


def sums_of(losses):
    """What ``info_nce`` makes of losses [B, K]."""
    return row_weights(len(losses)) @ losses


def gradients(sums, inputs):
    """Of a sum in which every path has its own weight."""
    return torch.autograd.grad((sums * torch.linspace(1.0, 3.0, len(sums), dtype=sums.dtype)).sum(), inputs)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 6), st.integers(0, 7), st.integers(0, 9), st.integers(1, 4), st.integers(1, 9)),
    masked=st.booleans(),
    invalid=st.booleans(),
    block=st.integers(1, 8),
)
def test_value_and_gradients_equal_a_dense_softmax(seed, shape, masked, invalid, block):
    *inputs, exclusion = example(seed, *shape, masked, invalid)
    sums, _ = info_nce(*inputs, exclusion, row_weights(shape[0]), block)
    expected = sums_of(dense(*inputs, exclusion))
    torch.testing.assert_close(sums, expected, **TOLERANCE)
    torch.testing.assert_close(gradients(sums, inputs), gradients(expected, inputs), **TOLERANCE)


@pytest.mark.parametrize("block", [1, 3, 7, 19, 20, 1000, None])
def test_the_size_of_blocks_changes_nothing(block):
    *inputs, exclusion = example(0, 20, 6, 9, 3, 8)
    weights = row_weights(20)
    whole, whole_hits = info_nce(*inputs, exclusion, weights, 20)
    parts, part_hits = info_nce(*inputs, exclusion, weights, block)
    torch.testing.assert_close(parts, whole, **TOLERANCE)
    torch.testing.assert_close(gradients(parts, inputs), gradients(whole, inputs), **TOLERANCE)
    assert torch.equal(part_hits, whole_hits)


def test_a_row_of_weight_0_counts_nowhere_but_as_a_candidate():
    *inputs, exclusion = example(4, 5, 2, 3, 2, 6)
    weights = row_weights(5)
    weights[2] = 0
    sums, _ = info_nce(*inputs, exclusion, weights, 2)
    expected = weights @ dense(*inputs, exclusion)
    torch.testing.assert_close(sums, expected, **TOLERANCE)
    found = gradients(sums, inputs)
    torch.testing.assert_close(found, gradients(expected, inputs), **TOLERANCE)
    assert found[0][2].abs().max() == 0 and found[1][4].abs().max() > 0


def test_gradients_pass_gradcheck():
    *inputs, exclusion = example(3, 3, 2, 4, 2, 3)
    assert torch.autograd.gradcheck(lambda *x: info_nce(*x, exclusion, row_weights(3), 2)[0], inputs)


def test_backward_can_run_again_on_a_kept_graph():
    *inputs, exclusion = example(3, 3, 2, 4, 2, 3)
    sums, _ = info_nce(*inputs, exclusion, row_weights(3), 2)
    first = torch.autograd.grad(sums.sum(), inputs, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(sums.sum(), inputs), first, rtol=0, atol=0)


def test_hits_are_rows_whose_positive_beats_every_negative_strictly():
    rows = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]]])
    candidates = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]], [[0.9, 0.1]]])
    valid = torch.ones(4, dtype=torch.bool)
    _, ties = info_nce(rows, candidates, torch.tensor(0.0), Exclusion(0, valid), torch.ones(3))
    assert ties.flatten().tolist() == [False, False, False]
    ids = torch.tensor([5, 5, 5, 6])
    _, hits = info_nce(rows, candidates, torch.tensor(0.0), Exclusion(0, valid, ids[:3], ids), torch.ones(3))
    assert hits.flatten().tolist() == [True, False, True]


def test_row_whose_candidates_are_all_excluded_has_no_loss_and_no_gradient():
    *inputs, exclusion = example(0, 2, 0, 3, 2, 4)
    alone = Exclusion(0, torch.tensor([True, True, False, False, False]), torch.tensor([7, 7]), torch.full((5,), 7))
    sums, hits = info_nce(*inputs, alone, torch.ones(2))
    assert torch.equal(sums, torch.zeros(2, dtype=torch.float64)) and hits.all()
    assert all(gradient.abs().max() == 0 for gradient in torch.autograd.grad(sums.sum(), inputs))


def test_float32_at_a_low_temperature_is_close_to_float64():
    """Scores reach 1/0.02 = 50; float32 rounds them by up to 50 * 6e-8 * (D = 16 products), below 5e-5, and the loss
    with them."""
    rows, candidates, _, exclusion = example(1, 8, 8, 16, 3, 16)
    log_temperature = torch.tensor(0.02, dtype=torch.float64).log()
    mean = torch.full((8,), 1 / 8, dtype=torch.float64)
    exact, _ = info_nce(rows, candidates, log_temperature, exclusion, mean)
    single, _ = info_nce(rows.float(), candidates.float(), log_temperature.float(), exclusion, mean)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=5e-5)


def test_autocast_does_not_lower_the_precision():
    *inputs, exclusion = example(2, 4, 0, 8, 2, 8)
    inputs = [tensor.detach().float().requires_grad_() for tensor in inputs]
    expected, _ = info_nce(*inputs, exclusion, row_weights(4))
    expected_gradients = gradients(expected, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        sums, _ = info_nce(*inputs, exclusion, row_weights(4))
        found = gradients(sums, inputs)
    assert torch.equal(sums, expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected_gradients, strict=True))


def test_no_tensor_of_either_pass_exceeds_a_block_of_scores_or_the_embeddings():
    rows, paths, dimension, block = 512, 2, 8, 16
    *inputs, exclusion = example(0, rows, 256, 768, paths, dimension)
    with LargestTensor() as largest:
        sums, _ = info_nce(*inputs, exclusion, row_weights(rows), block)
        sums.sum().backward()
    candidates = len(inputs[1])
    assert largest.elements == max(block * candidates, paths * candidates * dimension)
    assert largest.elements < rows * candidates / 30
