"""The objective on 2 and 3 real ranks against one process that holds the whole batch.

Everything is float64: sums over at most 100 terms in another order differ by some 1e-14, so 1e-10 sees any wrong
factor, missing row or detached one.
"""

import pytest
import torch
from distributed.ranks import Ranks
from objective.arguments import arguments
from objective.diversity_cases import give_predictions
from torch.nn.functional import normalize

from pdfx.config import ObjectiveSection
from pdfx.errors import UserError
from pdfx.objective import Objective
from pdfx.objective.gather import all_gather, rank_and_world_size
from pdfx.objective.pairs import keep_valid

PAIRS, PATHS, DIMENSION, NEGATIVES = 6, 3, 8, 2
EMBEDDINGS = ("query", "target", "negatives", "query_fused", "target_fused", "negatives_fused")
TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}
LEARNED = 8
CONTRASTS = {
    "plain": {"diversity": "none", "mask_same_target": False},
    "everything": {
        "diversity": "orthogonality",
        "diversity_weight": 0.5,
        "symmetric": True,
        "path_weight": 0.7,
        "fused_weight": 1.3,
    },
    "only fused": {"diversity": "orthogonality", "path_weight": 0.0},
    "paths together": {
        "diversity": "none",
        "symmetric": True,
        "path_weight": 0.0,
        "fused_weight": 0.0,
        "maxsim_weight": 0.7,
        "maxsim_budgets": [1, 3],
        "distillation_weight": 1.3,
    },
}
"""What does not depend on the number of ranks in any way."""
TERMS: dict[str, dict] = {
    "gaussian": {"mutual_information": {"bound": "gaussian"}},
    "vclub": {"mutual_information": {"bound": "vclub"}},
    "vclub, network": {"mutual_information": {"bound": "vclub", "predictor": "network", "hidden": 8}},
    "l1out": {"mutual_information": {"bound": "l1out"}},
    "l1out, network": {"mutual_information": {"bound": "l1out", "predictor": "network", "hidden": 8}},
    "cross_correlation": {"diversity": "cross_correlation"},
    "cross_covariance": {"diversity": "cross_covariance"},
    "hsic": {"diversity": "hsic"},
}
GLOBAL = {
    f"{name}, global": term | {"diversity_scope": "global", "diversity_weight": 0.5}
    for name, term in (TERMS | {"orthogonality": {"diversity": "orthogonality"}}).items()
}
PER_RANK = {f"{name}, per rank": term | {"diversity_weight": 0.5} for name, term in TERMS.items()}
SETTINGS = CONTRASTS | GLOBAL | PER_RANK
# Of 2 ranks the last then holds one valid pair or none, of 3 ranks none in both cases.
VALID = {"all valid": [1, 1, 1, 1, 1, 1], "uneven": [0, 1, 1, 1, 0, 0], "one rank empty": [1, 0, 1, 0, 0, 0]}


def whole_batch(valid: str) -> dict:
    generator = torch.Generator().manual_seed(0)
    embed = lambda *shape: normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)  # noqa: E731
    mask = torch.tensor(VALID[valid], dtype=torch.bool)
    negative_valid = mask[:, None].repeat(1, NEGATIVES)
    negative_valid[2, 1] = False
    return {
        "query": embed(PAIRS, PATHS, DIMENSION),
        "target": embed(PAIRS, PATHS, DIMENSION),
        "negatives": embed(PAIRS, NEGATIVES, PATHS, DIMENSION),
        "query_fused": embed(PAIRS, DIMENSION),
        "target_fused": embed(PAIRS, DIMENSION),
        "negatives_fused": embed(PAIRS, NEGATIVES, DIMENSION),
        # Pairs 1 and 3 share a target, and the first negative of pair 2 is the target of pair 1: on other ranks in both
        # worlds.
        "target_ids": torch.tensor([10, 11, 12, 11, 14, 15]),
        "negative_ids": torch.tensor([[20, 21], [22, 23], [11, 25], [26, 27], [28, 29], [30, 31]]),
        "valid": mask,
        "negative_valid": negative_valid,
    }


def share(batch: dict, rank: int, world_size: int) -> dict:
    """One rank's part, as leaves that take a gradient."""
    part = {name: value.chunk(world_size)[rank].clone() for name, value in batch.items()}
    for name in EMBEDDINGS:
        part[name].requires_grad_()
    return part | {"log_temperature": torch.tensor(-1.2, dtype=torch.float64, requires_grad=True)}


def objective_of(settings: dict, kept: dict | None = None) -> Objective:
    objective = Objective(
        ObjectiveSection.model_validate(settings),
        PATHS,
        DIMENSION,
        seed=0,
        matryoshka_dims=[5] if settings.get("symmetric") else [],
    )
    if objective.diversity.networks is not None:
        # With the last layer at 0, the first gradients of the layer before it would be roundings alone, and Adam makes
        # whole steps of them.
        give_predictions(objective.diversity.networks.double())
    if kept:
        objective.load_state_dict(kept)
    # The weight is full: what it follows is another test's matter.
    objective.diversity.r2 = torch.tensor(1.0, dtype=torch.float64)
    return objective


def evaluate(settings: dict, part: dict) -> dict:
    """Loss, metrics and gradients of one rank, and what its objective keeps, after some steps."""
    objective = objective_of(settings)
    for _ in range(LEARNED):
        learned = objective.learn(part["query"], part["target"], part["valid"])
    objective.diversity.r2 = torch.tensor(1.0, dtype=torch.float64)
    loss, metrics = objective(*arguments(part, 1))
    inputs = [part[name] for name in (*EMBEDDINGS, "log_temperature")]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    return {
        "loss": loss.detach(),
        "metrics": metrics | learned,
        "gradients": dict(zip((*EMBEDDINGS, "log_temperature"), gradients, strict=True)),
        "kept": objective.state_dict(),
    }


def cases():
    return [(name, valid) for name in SETTINGS for valid in VALID]


def gather_case(rank: int) -> dict:
    """A loss per rank that weighs every gathered row in its own way, so that the gradient's expected value is known."""
    first, second, empty = (
        torch.full(shape, rank + 1.0, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (1, 2, 2), (0, 4))
    )
    gathered = all_gather([first, second, empty])
    weights = [torch.arange(x.numel(), dtype=torch.float64).view_as(x) * 10**rank for x in gathered]
    loss = sum((w * x).sum() for w, x in zip(weights, gathered, strict=True))
    return {"gathered": [x.detach() for x in gathered], "gradients": torch.autograd.grad(loss, [first, second, empty])}


def refusal_case(part: dict) -> str:
    try:
        evaluate(CONTRASTS["plain"], part | {"valid": torch.zeros_like(part["valid"])})
    except UserError as error:
        return str(error)
    return ""


def run_rank(folder: str) -> None:
    """Every case on this rank; the results go through a file."""
    rank, world_size = rank_and_world_size()
    results = {
        (name, valid): evaluate(SETTINGS[name], share(whole_batch(valid), rank, world_size)) for name, valid in cases()
    }
    results["gather"] = gather_case(rank)
    results["refusal"] = refusal_case(share(whole_batch("all valid"), rank, world_size))
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module", params=[2, 3], ids=lambda size: f"{size} ranks")
def ranks(request, tmp_path_factory) -> list[dict]:
    """What each rank found; all cases in one set of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    with Ranks(request.param) as processes:
        processes.run(run_rank, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


def assert_equals_whole_batch(found: list[dict], loss: torch.Tensor, gradients: dict[str, torch.Tensor]) -> None:
    """Mean of losses, and gradients over W: what an engine that averages over ranks makes of them."""
    world_size = len(found)
    torch.testing.assert_close(torch.stack([one["loss"] for one in found]).mean(), loss, **TOLERANCE)
    for name in EMBEDDINGS:
        together = torch.cat([one["gradients"][name] for one in found]) / world_size
        torch.testing.assert_close(
            together, gradients[name], **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )
    temperature = torch.stack([one["gradients"]["log_temperature"] for one in found]).mean()
    torch.testing.assert_close(temperature, gradients["log_temperature"], **TOLERANCE)


@pytest.mark.parametrize("valid", VALID)
@pytest.mark.parametrize("name", CONTRASTS | GLOBAL)
def test_loss_gradients_and_metrics_equal_one_process_with_the_whole_batch(ranks, name, valid):
    found = [rank[name, valid] for rank in ranks]
    single = evaluate(SETTINGS[name], share(whole_batch(valid), 0, 1))
    assert_equals_whole_batch(found, single["loss"], single["gradients"])
    for one in found:
        assert_metrics_equal(one["metrics"], single["metrics"])
        # What the next step's weight follows.
        torch.testing.assert_close(one["kept"]["r2"], single["kept"]["r2"], **TOLERANCE)
        assert torch.equal(one["kept"]["r2"], found[0]["kept"]["r2"])


def assert_metrics_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The standard error is the root of a difference of squares: if all rows say M, roundings of M^2 are left of it."""
    name = "mutual_information_error"
    torch.testing.assert_close(
        {key: value for key, value in found.items() if key != name},
        {key: value for key, value in expected.items() if key != name},
        **TOLERANCE,
    )
    if name in expected:
        rounding = 1e-14 * float(expected["mutual_information"]) ** 2
        torch.testing.assert_close(found[name] ** 2, expected[name] ** 2, rtol=1e-10, atol=1e-12 + rounding)


@pytest.mark.parametrize("valid", VALID)
@pytest.mark.parametrize("name", PER_RANK)
def test_what_is_kept_is_alike_on_all_ranks_and_equals_one_process(ranks, name, valid):
    found = [rank[name, valid] for rank in ranks]
    single = evaluate(SETTINGS[name], share(whole_batch(valid), 0, 1))
    for part in ("recent", "variational"):
        for key, value in single["kept"].get(part, {}).items():
            if isinstance(value, torch.Tensor):
                assert all(torch.equal(one["kept"][part][key], found[0]["kept"][part][key]) for one in found)
                if part == "variational":
                    torch.testing.assert_close(found[0]["kept"][part][key], value, **TOLERANCE)
    # Fillers count as rows that were written.
    values = found[0]["kept"]["recent"]["values"]
    assert sorted(values.sum((0, 2, 3)).tolist()) == pytest.approx(
        sorted(single["kept"]["recent"]["values"].sum((0, 2, 3)).tolist()), abs=1e-12
    )


@pytest.mark.parametrize("valid", VALID)
@pytest.mark.parametrize("name", PER_RANK)
def test_a_term_per_rank_is_the_mean_of_the_ranks_own_terms(ranks, name, valid):
    """In one process: contrast on the whole batch, plus the mean of the terms of each rank's share, with what the ranks
    keep."""
    found = [rank[name, valid] for rank in ranks]
    objective = objective_of(SETTINGS[name], found[0]["kept"])
    batch = share(whole_batch(valid), 0, 1)
    contrast, _ = objective_of({"diversity": "none"})(*arguments(batch, 1))
    shares = zip(*(batch[part].chunk(len(ranks)) for part in ("query", "target", "valid")), strict=True)
    terms = [
        objective.diversity(keep_valid(torch.stack([query, target], 1), kept).transpose(0, 1), kept, 1).loss
        for query, target, kept in shares
    ]
    loss = contrast + torch.stack(terms).mean()
    names = (*EMBEDDINGS, "log_temperature")
    gradients = dict(zip(names, torch.autograd.grad(loss, [batch[part] for part in names]), strict=True))
    assert_equals_whole_batch(found, loss.detach(), gradients)
    for one in found:
        torch.testing.assert_close(one["metrics"]["loss"], loss.detach(), **TOLERANCE)


@pytest.mark.parametrize("name", PER_RANK)
def test_rank_without_a_valid_pair_has_finite_metrics_and_no_gradient(ranks, name):
    last = ranks[-1][name, "one rank empty"]
    assert all(torch.isfinite(value) for value in last["metrics"].values())
    assert all(value.abs().max() == 0 for value in last["gradients"].values())


def test_gradient_of_the_gather_is_the_sum_over_all_ranks_losses(ranks):
    total = sum(10.0**rank for rank in range(len(ranks)))
    for rank, result in enumerate(one["gather"] for one in ranks):
        for gathered, gradient in zip(result["gathered"], result["gradients"], strict=True):
            rows = gathered.shape[0] // len(ranks)
            expected = torch.cat([torch.full_like(gathered[:rows], other + 1.0) for other in range(len(ranks))])
            assert torch.equal(gathered, expected)
            weights = torch.arange(gathered.numel(), dtype=torch.float64).view_as(gathered) * total
            torch.testing.assert_close(gradient, weights[rank * rows : (rank + 1) * rows], **TOLERANCE)


def test_every_rank_refuses_a_step_without_any_valid_pair(ranks):
    assert all("Not one pair of this step is valid" in rank["refusal"] for rank in ranks)
