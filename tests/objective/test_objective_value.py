"""The whole objective on one rank against the formula, written plainly with dense matrices in float64."""

import itertools

import pytest
import torch
from objective.arguments import arguments
from objective.batches import DIMENSION, EMBEDDINGS, PATHS, TOLERANCE, batch, leaves, objective_of, with_fillers
from torch.nn.functional import normalize

from pdfx.config import ObjectiveSection
from pdfx.errors import UserError


def reference_info_nce(data, kind, settings, dims):
    """[K]: the mean over valid rows, directions and leading dimensions, from the rows that exist at all."""
    suffix = "" if kind == "path" else "_fused"
    query, target, negatives = (
        data[name + suffix] if kind == "path" else data[name + suffix].unsqueeze(-2)
        for name in ("query", "target", "negatives")
    )
    rows = data["valid"].nonzero().flatten()
    kept = data["negative_valid"] & data["valid"][:, None]
    ids, negative_ids = data["target_ids"][rows], data["negative_ids"][kept]
    own = torch.eye(len(rows), dtype=torch.bool)
    same, same_negatives = ids[:, None] == ids, ids[:, None] == negative_ids
    if not settings.mask_same_target:
        same, same_negatives = torch.zeros_like(same), torch.zeros_like(same_negatives)
    levels = []
    for size in (None, *dims):
        cut = (lambda x: x) if size is None else (lambda x, size=size: normalize(x[..., :size], dim=-1))
        q, t, n = cut(query[rows]), cut(target[rows]), cut(negatives[kept])
        inverse = torch.exp(-data["log_temperature"])
        pool = torch.einsum("bkd,ckd->kbc", q, torch.cat([t, n])) * inverse
        pool = pool.masked_fill(torch.cat([same & ~own, same_negatives], 1), -torch.inf)
        directions = [-pool.log_softmax(-1)[:, range(len(rows)), range(len(rows))].mean(1)]
        if settings.symmetric:
            back = (torch.einsum("bkd,ckd->kbc", t, q) * inverse).masked_fill(same & ~own, -torch.inf)
            directions.append(-back.log_softmax(-1)[:, range(len(rows)), range(len(rows))].mean(1))
        levels.append(torch.stack(directions).mean(0))
    return torch.stack(levels).mean(0)


def reference_orthogonality(data):
    sides = []
    for side in ("query", "target"):
        e = data[side][data["valid"]]
        paths = e.shape[1]
        sides.append(
            sum((e[:, i] * e[:, j]).sum(-1) ** 2 for i in range(paths) for j in range(i + 1, paths)).mean()
            * 2
            / (paths * (paths - 1))
        )
    return (sides[0] + sides[1]) / 2


OPTIONS = list(itertools.product([False, True], [False, True], [0, 2], [False, True], [(), (3, 5)]))


@pytest.mark.parametrize(("symmetric", "mask", "negatives", "fillers", "dims"), OPTIONS)
def test_contrast_and_orthogonality_equal_the_dense_formula_in_value_and_gradient(
    symmetric, mask, negatives, fillers, dims
):
    data = batch(negatives=negatives)
    if fillers:
        with_fillers(data)
    weights = {"path_weight": 0.7, "fused_weight": 1.3, "diversity": "orthogonality", "diversity_weight": 0.5}
    objective = objective_of(dims=dims, symmetric=symmetric, mask_same_target=mask, **weights)
    objective.block_rows = 4
    loss, metrics = objective(*arguments(data))
    paths, fused = (reference_info_nce(data, kind, objective.settings, dims) for kind in ("path", "fused"))
    expected = 0.7 * paths.sum() + 1.3 * fused[0] + 0.5 * reference_orthogonality(data)
    torch.testing.assert_close(loss, expected, **TOLERANCE)
    torch.testing.assert_close(
        torch.stack([metrics[f"loss_path_{k}"] for k in range(PATHS)]), paths.detach(), **TOLERANCE
    )
    torch.testing.assert_close(metrics["loss_fused"], fused[0].detach(), **TOLERANCE)
    torch.testing.assert_close(
        torch.autograd.grad(loss, leaves(data)), torch.autograd.grad(expected, leaves(data)), **TOLERANCE
    )


@pytest.mark.parametrize(("path_weight", "fused_weight"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_weight_of_zero_takes_a_part_out_of_the_gradient_but_not_out_of_the_metrics(path_weight, fused_weight):
    data = batch()
    loss, metrics = objective_of(path_weight=path_weight, fused_weight=fused_weight, diversity="none")(*arguments(data))
    paths, fused = (reference_info_nce(data, kind, ObjectiveSection(), ()) for kind in ("path", "fused"))
    expected = path_weight * paths.sum() + fused_weight * fused[0]
    torch.testing.assert_close(loss, expected, **TOLERANCE)
    torch.testing.assert_close(metrics["loss_path_1"], paths[1].detach(), **TOLERANCE)
    torch.testing.assert_close(metrics["loss_fused"], fused[0].detach(), **TOLERANCE)
    found = torch.autograd.grad(loss, leaves(data), allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected, leaves(data), materialize_grads=True), **TOLERANCE)


def test_concatenated_fused_embeddings_may_be_wider_than_a_path():
    data = batch(fused=PATHS * DIMENSION)
    _, metrics = objective_of(dims=(4,), diversity="none")(*arguments(data))
    torch.testing.assert_close(
        metrics["loss_fused"], reference_info_nce(data, "fused", ObjectiveSection(), (4,))[0].detach(), **TOLERANCE
    )


def test_what_a_filler_holds_counts_nowhere_even_if_it_is_not_finite():
    clean, spoilt = with_fillers(batch()), with_fillers(batch())
    with torch.no_grad():
        for name in EMBEDDINGS:
            valid = spoilt["valid"] if "negatives" not in name else spoilt["negative_valid"] & spoilt["valid"][:, None]
            spoilt[name][~valid] = torch.nan
    settings = {"symmetric": True, "dims": (4,)}
    losses = []
    for data in (clean, spoilt):
        objective = objective_of(**settings)
        objective.terms(*arguments(data))
        losses.append(objective(*arguments(data)))
    assert torch.equal(losses[0][0], losses[1][0])
    assert losses[0][1] == losses[1][1]
    for mine, other in zip(
        torch.autograd.grad(losses[0][0], leaves(clean)), torch.autograd.grad(losses[1][0], leaves(spoilt)), strict=True
    ):
        assert torch.equal(mine, other)
    gradient = torch.autograd.grad(objective_of(**settings)(*arguments(spoilt))[0], spoilt["target"])[0]
    assert gradient[~spoilt["valid"]].abs().max() == 0 and gradient[spoilt["valid"]].abs().min() > 0


def test_no_valid_pair_at_all_is_an_error_that_says_so():
    data = batch()
    data["valid"][:] = False
    objective = objective_of()
    with pytest.raises(UserError, match="Not one pair of this step is valid"):
        objective(*arguments(data))


def test_accuracy_and_path_cosine_are_counted_over_valid_rows():
    """Cosines of embeddings less the mean over valid rows, as nothing is remembered yet."""
    data = with_fillers(batch(negatives=0))
    with torch.no_grad():
        data["target_fused"].copy_(data["query_fused"])
        data["target_fused"][0] = -data["query_fused"][0]
        data["target"][:, 1] = data["target"][:, 0]
    _, metrics = objective_of(mask_same_target=False)(*arguments(data))
    valid = data["valid"]
    assert metrics["accuracy"] == pytest.approx((valid.sum().item() - 1) / valid.sum().item(), rel=1e-12)
    centred = {side: normalize(data[side][valid] - data[side][valid].mean(0), dim=-1) for side in ("query", "target")}
    cosines = [
        (centred[side][:, i] * centred[side][:, j]).sum(-1).mean().item()
        for side in ("query", "target")
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert metrics["path_cosine"].item() == pytest.approx(sum(cosines) / 6, rel=1e-12)
    # On the target's side paths 0 and 1 are the same.
    assert metrics["path_cosine_max"].item() == pytest.approx((cosines[0] + cosines[3]) / 2, rel=1e-12)
    assert metrics["path_cosine_max"] > 2 * metrics["path_cosine"]


def test_half_precision_embeddings_are_contrasted_in_float32():
    data = batch(dtype=torch.bfloat16)
    wide = {
        name: value.detach().float().requires_grad_() if name in EMBEDDINGS or name == "log_temperature" else value
        for name, value in data.items()
    }
    loss, _ = objective_of(diversity="orthogonality")(*arguments(data))
    expected, _ = objective_of(diversity="orthogonality")(*arguments(wide))
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    assert torch.autograd.grad(loss, data["query"])[0].dtype == torch.bfloat16


def test_one_path_has_no_diversity_term():
    data = batch(paths=1)
    loss, metrics = objective_of(paths=1)(*arguments(data))
    plain, _ = objective_of(paths=1, diversity="none")(*arguments(data))
    assert torch.equal(loss, plain)
    assert objective_of(paths=1).state_dict() == {} and objective_of(paths=1).kept_tensors() == []
    assert not {"mutual_information", "path_cosine", "path_cosine_max", "diversity_weight"} & set(metrics)
    assert objective_of(paths=1).learn(data["query"], data["target"], data["valid"]) == {}


def test_matryoshka_dimension_beyond_the_embedding_is_refused():
    with pytest.raises(UserError, match="matryoshka_dims holds 9, but the embeddings have 8"):
        objective_of(dims=(4, 9))


def test_metrics_are_detached_scalars():
    _, metrics = objective_of()(*arguments(batch()))
    assert all(value.dim() == 0 and not value.requires_grad for value in metrics.values())
    expected = {f"loss_path_{k}" for k in range(3)} | {"loss", "loss_fused", "accuracy", "temperature"}
    expected |= {"diversity", "diversity_weight", "mutual_information", "mutual_information_error", "mi_r2"}
    expected |= {"path_cosine", "path_cosine_max", "path_cka"}
    assert set(metrics) == expected
    assert metrics["temperature"].item() == pytest.approx(2.718281828459045**-1.2, rel=1e-12)
