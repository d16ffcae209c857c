"""MaxSim and distillation as parts of the objective: against loops in numpy, finite differences and one another."""

import numpy as np
import pytest
import torch
from objective.arguments import arguments
from objective.batches import (
    DIMENSION,
    EMBEDDINGS,
    NEGATIVES,
    PAIRS,
    PATHS,
    TOLERANCE,
    LargestTensor,
    batch,
    leaves,
    objective_of,
    with_fillers,
)
from torch.nn.functional import normalize

from pdfx.config import ObjectiveSection
from pdfx.errors import UserError
from pdfx.evaluate.metrics import similarity
from pdfx.objective.contrastive import Exclusion
from pdfx.objective.paths_together import distillation, maxsim, maxsim_info_nce

ONLY_MAXSIM = {"diversity": "none", "path_weight": 0, "fused_weight": 0, "maxsim_weight": 1}
BOTH = {"diversity": "none", "maxsim_weight": 0.7, "distillation_weight": 1.3}


def lead(vectors, size):
    cut = vectors[..., :size]
    return cut / np.linalg.norm(cut, axis=-1, keepdims=True)


def log_softmax(scores):
    return np.array(scores) - np.log(np.exp(scores).sum())


def items(data, side, negatives):
    """(embeddings of the paths, fused embedding, identity, number of its pair or None) of all valid items of a side."""
    values = {name: data[name].detach().numpy() for name in EMBEDDINGS}
    found = [
        (values[side][i], values[f"{side}_fused"][i], int(data["target_ids"][i]), i)
        for i in range(PAIRS)
        if data["valid"][i]
    ]
    return found + [
        (values["negatives"][i, m], values["negatives_fused"][i, m], int(data["negative_ids"][i, m]), None)
        for i in range(PAIRS)
        for m in range(NEGATIVES)
        if negatives and data["valid"][i] and data["negative_valid"][i, m]
    ]


def by_loops(data, symmetric, mask, dims, budgets):
    """MaxSim's InfoNCE and the distillation, item by item and path by path."""
    temperature = float(data["log_temperature"].detach().exp())
    ways = [(items(data, "query", False), items(data, "target", True))]
    ways += [(items(data, "target", False), items(data, "query", False))] * symmetric
    maxsims, distillations = [], []
    for size in (DIMENSION, *dims):
        for rows, candidates in ways:
            for paths, fused, identity, pair in rows:
                kept = [c for c in candidates if c[3] == pair or not (mask and c[2] == identity)]
                own = [c[3] for c in kept].index(pair)
                for k in budgets:
                    scores = [
                        np.mean([max(lead(q, size) @ lead(t, size) for t in c[0][:k]) for q in paths[:k]]) for c in kept
                    ]
                    maxsims.append(-log_softmax(np.array(scores) / temperature)[own])
                teacher = np.exp(log_softmax([lead(fused, size) @ lead(c[1], size) / temperature for c in kept]))
                for path in range(PATHS):
                    scores = [lead(paths[path], size) @ lead(c[0][path], size) / temperature for c in kept]
                    distillations.append(-(teacher * log_softmax(scores)).sum())
    return np.mean(maxsims), np.mean(distillations)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("mask", "dims", "budgets"), [(True, (), [3]), (True, (3, 5), [1, 2, 3]), (False, (4,), [2]), (True, (), [])]
)
def test_both_equal_loops_in_numpy(symmetric, mask, dims, budgets):
    data = with_fillers(batch())
    objective = objective_of(dims=dims, symmetric=symmetric, mask_same_target=mask, maxsim_budgets=budgets, **BOTH)
    plain = objective_of(dims=dims, symmetric=symmetric, mask_same_target=mask, diversity="none")
    loss, metrics = objective(*arguments(data))
    expected = by_loops(data, symmetric, mask, dims, budgets or [PATHS])
    assert [float(metrics[f"loss_{name}"]) for name in ("maxsim", "distillation")] == pytest.approx(expected, rel=1e-10)
    added = (loss - plain(*arguments(data))[0]).item()
    assert added == pytest.approx(0.7 * expected[0] + 1.3 * expected[1], rel=1e-10)


def test_maxsim_is_the_score_that_evaluations_rank_by():
    rows, candidates = (normalize(torch.randn(n, PATHS, DIMENSION), dim=-1) for n in (5, 9))
    torch.testing.assert_close(maxsim(rows, candidates), similarity(rows, candidates))


def test_the_gradient_of_maxsim_equals_finite_differences():
    """Every embedding and the temperature, in both directions, budgets and leading dimensions, with fillers."""
    data = with_fillers(batch())
    names = ("query", "target", "negatives", "log_temperature")
    objective = objective_of(dims=(4,), symmetric=True, maxsim_budgets=[1, 3], **ONLY_MAXSIM)
    objective.block_rows = 4

    def loss(*values):
        return objective(*arguments(data | dict(zip(names, values, strict=True))))[0]

    assert torch.autograd.gradcheck(loss, [data[name] for name in names], fast_mode=True)


def tensors(rows, candidates, paths=PATHS, dimension=DIMENSION):
    """Rows and candidates of paths, then of fused embeddings; the rows' positives are candidates from 1 on."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(n, k, dimension) for k in (paths, 1) for n in (rows, candidates)]
    values = [normalize(torch.randn(*s, generator=generator, dtype=torch.float64), dim=-1) for s in shapes]
    valid = torch.ones(candidates, dtype=torch.bool)
    valid[0] = False
    ids = torch.arange(candidates) % (candidates - 1)
    return [value.requires_grad_() for value in values], Exclusion(1, valid, ids[1 : rows + 1], ids)


def test_the_gradient_of_the_distillation_equals_finite_differences_with_a_constant_teacher():
    (rows, candidates, *fused), exclusion = tensors(3, 6)
    log_temperature = torch.tensor(-1.2, dtype=torch.float64, requires_grad=True)
    shared = log_temperature, exclusion, torch.tensor([0.5, 1.0, 2.0]), 2
    assert torch.autograd.gradcheck(lambda *x: distillation(*x, *fused, *shared), [rows, candidates])
    inputs = [rows, *fused, log_temperature]
    loss = distillation(rows, candidates, *fused, *shared)
    by_row, *by_fused, by_temperature = torch.autograd.grad(loss, inputs, allow_unused=True)
    assert by_fused == [None, None]
    # The learner's scores are products of rows over the temperature, so that both gradients hold the same sum.
    torch.testing.assert_close(by_temperature, -(rows * by_row).sum(), **TOLERANCE)


def test_a_path_that_scores_as_the_fused_embedding_does_is_taught_nothing():
    (rows, candidates, *_), exclusion = tensors(4, 9)
    rows, candidates = (side[:, :1].detach().requires_grad_() for side in (rows, candidates))
    loss = distillation(rows, candidates, rows, candidates, torch.tensor(-1.2), exclusion, torch.ones(4))
    gradients = torch.autograd.grad(loss, [rows, candidates])
    assert loss > 0.1 and all(gradient.abs().max() < 1e-14 for gradient in gradients)


@pytest.mark.parametrize("block_rows", [1, 3, None])
def test_the_rows_scored_at_once_change_nothing(block_rows):
    found = []
    for rows in (PAIRS, block_rows):
        data, objective = with_fillers(batch()), objective_of(symmetric=True, maxsim_budgets=[2, 3], **BOTH)
        objective.block_rows = rows
        loss, _ = objective(*arguments(data))
        found.append((loss, *torch.autograd.grad(loss, leaves(data))))
    torch.testing.assert_close(*found, **TOLERANCE)


@pytest.mark.parametrize("term", ["maxsim", "distillation"])
def test_no_tensor_of_either_pass_exceeds_a_block_of_scores_or_the_embeddings(term):
    rows, candidates, paths, dimension, block = 256, 512, 3, 4, 16
    values, exclusion = tensors(rows, candidates, paths, dimension)
    shared = torch.tensor(-1.2), exclusion, torch.ones(rows), block
    with LargestTensor() as largest:
        loss = maxsim_info_nce(*values[:2], *shared) if term == "maxsim" else distillation(*values, *shared)
        loss.backward()
    assert largest.elements == max(block * candidates, paths * candidates * dimension)


def test_a_weight_of_0_changes_nothing():
    data = batch()
    default, off = objective_of(), objective_of(maxsim_weight=0, maxsim_budgets=[1], distillation_weight=0)
    (expected, metrics), (loss, others) = default(*arguments(data)), off(*arguments(data))
    assert metrics == others and not {"loss_maxsim", "loss_distillation"} & metrics.keys()
    for one, other in zip(
        torch.autograd.grad(loss, leaves(data)), torch.autograd.grad(expected, leaves(data)), strict=True
    ):
        assert torch.equal(one, other)


def test_one_path_has_no_distillation():
    data = batch(paths=1)
    loss, metrics = objective_of(paths=1, distillation_weight=1)(*arguments(data))
    assert torch.equal(loss, objective_of(paths=1)(*arguments(data))[0]) and "loss_distillation" not in metrics


def test_maxsim_of_one_path_and_budgets_beyond_the_paths_are_refused():
    with pytest.raises(
        UserError, match=r"MaxSim of a single path is that path's InfoNCE; set objective\.maxsim_weight"
    ):
        objective_of(paths=1, **ONLY_MAXSIM)
    with pytest.raises(UserError, match=r"maxsim_budgets holds 4, but model\.paths is 3; choose values from 1 to 3"):
        objective_of(maxsim_budgets=[1, 4], **ONLY_MAXSIM)


def test_some_contrast_must_have_a_weight():
    assert ObjectiveSection(path_weight=0, fused_weight=0, maxsim_weight=1).maxsim_weight == 1
    with pytest.raises(ValueError, match="path_weight, fused_weight and maxsim_weight are 0"):
        ObjectiveSection(path_weight=0, fused_weight=0, distillation_weight=1)
