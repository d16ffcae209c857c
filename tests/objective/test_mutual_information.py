"""vCLUB: exact against its definition, right on Gaussians whose mutual information is known, and one-way in its
gradients."""

import math

import pytest
import torch
from pdfx.objective.mutual_information import VariationalNetworks, fit
from torch.nn.functional import gelu, normalize

from pdfx.config import MutualInformationSection, ObjectiveSection
from pdfx.errors import UserError
from pdfx.objective import Objective, PairEmbeddings, PairIdentities

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}  # float64 rounds at 1.1e-16; sums of a few hundred terms of size 100


def networks_of(sides=1, paths=3, dimension=6, hidden=10, seed=0) -> VariationalNetworks:
    return VariationalNetworks(sides, paths, dimension, hidden, seed).double()


def embeddings_of(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).requires_grad_()


def predict(networks, group, x):
    """mu and logvar of one network for one embedding that is scaled already."""
    hidden = gelu(x @ networks.hidden_weight[group].detach() + networks.hidden_bias[group, 0].detach())
    mean, raw = (hidden @ networks.output_weight[group].detach() + networks.output_bias[group, 0].detach()).chunk(2)
    return mean, 6 * torch.tanh(raw / 6)


def log_density(y, mean, logvar):
    return (-0.5 * (y - mean) ** 2 / logvar.exp() - 0.5 * logvar - 0.5 * math.log(2 * math.pi)).sum()


def plain_club(networks, embeddings, valid):
    """[S], pair of paths by pair of paths, with all B^2 pairs of rows one by one."""
    scaled = embeddings * math.sqrt(embeddings.shape[-1])
    rows = valid.nonzero().flatten().tolist()
    per_side, group = [], 0
    for side in range(embeddings.shape[0]):
        estimates = []
        for i in range(embeddings.shape[2]):
            for j in range(embeddings.shape[2]):
                if i == j:
                    continue
                predictions = {row: predict(networks, group, scaled[side, row, i]) for row in rows}
                positive = sum(log_density(scaled[side, row, j], *predictions[row]) for row in rows) / len(rows)
                negative = (
                    sum(log_density(scaled[side, other, j], *predictions[row]) for row in rows for other in rows)
                    / len(rows) ** 2
                )
                estimates.append(positive - negative)
                group += 1
        per_side.append(torch.stack(estimates).mean())
    return torch.stack(per_side)


@pytest.mark.parametrize("shape", [(1, 2, 2, 3), (1, 9, 2, 6), (2, 8, 3, 4), (2, 6, 4, 5)])
@pytest.mark.parametrize("fillers", [False, True])
def test_estimate_and_gradient_equal_a_plain_double_loop(shape, fillers):
    sides, rows, paths, dimension = shape
    embeddings = embeddings_of(*shape)
    valid = torch.ones(rows, dtype=torch.bool)
    valid[2::3] = not fillers
    networks = networks_of(sides, paths, dimension)
    fit(networks, torch.optim.AdamW(networks.parameters(), lr=1e-2), embeddings, valid, int(valid.sum()), steps=20)
    found = networks.estimate(embeddings, valid).per_side
    expected = plain_club(networks, embeddings, valid)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    weights = torch.tensor([1.0, 0.3], dtype=torch.float64)[:sides]
    gradients = [torch.autograd.grad((value * weights).sum(), embeddings) for value in (found, expected)]
    torch.testing.assert_close(*gradients, **TOLERANCE)


def test_closed_form_is_exact_for_embeddings_far_from_the_origin():
    """All embeddings share a large mean, as those of real models do: the closed form may not subtract large numbers.
    Float32 against float64."""
    embeddings = normalize(embeddings_of(1, 64, 2, 32).detach() + 20 / math.sqrt(32), dim=-1)
    valid = torch.ones(64, dtype=torch.bool)
    networks = networks_of(1, 2, 32)
    exact = networks.estimate(embeddings, valid).per_side
    single = networks.float().estimate(embeddings.float(), valid).per_side
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1])
def test_fewer_than_two_valid_rows_give_zero_and_no_gradient(rows):
    embeddings = embeddings_of(2, 4, 3, 6)
    estimate = networks_of(sides=2).estimate(embeddings, torch.arange(4) < rows)
    assert torch.equal(estimate.per_side, torch.zeros(2, dtype=torch.float64))
    assert torch.autograd.grad(estimate.per_side.sum(), embeddings)[0].abs().max() == 0
    assert all(math.isfinite(value) for value in estimate.sums.values())


def test_gradient_reaches_every_path_on_both_sides_and_no_network():
    networks = networks_of(sides=2)
    embeddings = embeddings_of(2, 5, 3, 6)
    networks.estimate(embeddings, torch.ones(5, dtype=torch.bool)).per_side.sum().backward()
    assert (embeddings.grad.abs().amax(-1) > 0).all()
    assert all(parameter.grad is None for parameter in networks.parameters())


def test_fit_reports_the_likelihood_per_dimension_over_valid_rows():
    networks = networks_of()
    embeddings = embeddings_of(1, 5, 3, 6)
    valid = torch.tensor([True, False, True, True, False])
    scaled = embeddings.detach()[0] * math.sqrt(6)
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    densities = [
        log_density(scaled[row, j], *predict(networks, group, scaled[row, i]))
        for group, (i, j) in enumerate(pairs)
        for row in (0, 2, 3)
    ]
    constant = 0.5 * math.log(2 * math.pi)
    found = fit(networks, torch.optim.AdamW(networks.parameters()), embeddings, valid, 3, steps=1)
    torch.testing.assert_close(found, -torch.stack(densities).mean() / 6 - constant, **TOLERANCE)


def test_fit_trains_the_networks_and_leaves_the_embeddings_alone():
    networks = networks_of()
    before = [parameter.detach().clone() for parameter in networks.parameters()]
    embeddings = embeddings_of(1, 8, 3, 6)
    valid = torch.ones(8, dtype=torch.bool)
    optimizer = torch.optim.AdamW(networks.parameters(), lr=1e-2)
    likelihoods = [fit(networks, optimizer, embeddings, valid, 8, steps=1).item() for _ in range(50)]
    assert embeddings.grad is None
    assert all(not torch.equal(old, new) for old, new in zip(before, networks.parameters(), strict=True))
    assert likelihoods[-1] < likelihoods[0] - 0.1


def correlated(rho, rows, dimension, generator):
    """[1, rows, 2, D]: two Gaussian paths whose dimensions correlate by rho. Divided by sqrt(D), since the estimator
    multiplies by it."""
    first, noise = torch.randn(2, rows, dimension, generator=generator)
    return torch.stack([first, rho * first + math.sqrt(1 - rho**2) * noise], dim=1)[None] / math.sqrt(dimension)


@pytest.fixture(scope="module")
def gaussian_estimates():
    """For each rho: estimates and pooled sums on 20 fresh batches, after fitting q to other ones."""
    dimension, results = 4, {}
    for rho in (0.1, 0.3, 0.5, 0.7, 0.9):
        generator = torch.Generator().manual_seed(int(rho * 10))
        networks = VariationalNetworks(1, 2, dimension, hidden=32, seed=0)
        optimizer = torch.optim.AdamW(networks.parameters(), lr=1e-2)
        everyone = torch.ones(2048, dtype=torch.bool)
        for step in range(300):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (1 - step / 300)
            fit(networks, optimizer, correlated(rho, 2048, dimension, generator), everyone, 2048, steps=1)
        fresh = [networks.estimate(correlated(rho, 2048, dimension, generator), everyone) for _ in range(20)]
        values = torch.stack([estimate.per_side[0] for estimate in fresh])
        sums = {name: sum(estimate.sums[name].item() for estimate in fresh) for name in fresh[0].sums}
        results[rho] = {
            "mean": values.mean().item(),
            "error": (values.std() / math.sqrt(len(values))).item(),
            "r2": 1 - sums["residual"] / sums["variation"],
            "gap": sums["gap"] / sums["rows"],
            "information": -dimension / 2 * math.log(1 - rho**2),
            "club": dimension * rho**2 / (1 - rho**2),
        }
    return results


def test_on_gaussians_the_estimate_rises_and_falls_with_the_true_information(gaussian_estimates):
    means = [result["mean"] for result in gaussian_estimates.values()]
    assert means == sorted(means) and means[0] < 0.1 < 10 < means[-1]


def test_on_gaussians_the_estimate_is_an_upper_bound_within_its_sampling_error(gaussian_estimates):
    """With the perfect q, vCLUB is D rho^2 / (1 - rho^2), which is at least twice the information -D/2 ln(1 - rho^2).

    The sampling error is the standard error over 20 independent batches of 2048 rows, and 4 of them are allowed. A
    fitted q misses the perfect one; its mean and its variance enter as factors, and 5 % are allowed for them.
    """
    for result in gaussian_estimates.values():
        assert result["mean"] + 4 * result["error"] >= result["information"]
        assert abs(result["mean"] - result["club"]) <= 0.05 * result["club"] + 4 * result["error"]


def test_on_gaussians_r2_is_rho_squared(gaussian_estimates):
    """The best prediction explains rho^2.

    The standard error of a squared correlation over N rows is 2 rho (1 - rho^2) / sqrt(N), below 0.002 for the 163840
    values here; the rest of the allowance is for q's own miss.
    """
    for rho, result in gaussian_estimates.items():
        assert result["r2"] == pytest.approx(rho**2, abs=0.01)


def test_on_gaussians_the_log_likelihood_gap_is_the_information_from_below(gaussian_estimates):
    """E log q(y|x) - E log p(y) is the information less the divergence of p(y|x) from q (Barber and Agakov 2003): at
    most the information, and close to it.

    The log-ratio of one row has the variance D rho^2, below 4, so its mean over 40960 rows has a standard error below
    0.01; 4 of them are allowed.
    """
    for result in gaussian_estimates.values():
        assert result["gap"] == pytest.approx(result["information"], abs=0.04)


def objective_of(warmup=0, seed=0, **settings) -> Objective:
    options = MutualInformationSection(hidden=8, warmup_steps=warmup, **settings)
    objective = Objective(
        ObjectiveSection(mutual_information=options, diversity_weight=0.5),
        paths=3,
        dimension=6,
        seed=seed,
        matryoshka_dims=[],
    )
    objective.variational.double()
    return objective


def call(objective, query, target, step=0):
    rows = len(query)
    empty = torch.zeros(rows, 0, dtype=torch.long)
    fused = [normalize(side.mean(1), dim=-1) for side in (query, target)]
    nothing = torch.zeros(rows, 0, 3, 6, dtype=torch.float64)
    valid = torch.ones(rows, dtype=torch.bool)
    temperature = torch.tensor(0.0, dtype=torch.float64)
    embeddings = PairEmbeddings(query, target, nothing), PairEmbeddings(*fused, nothing[:, :, 0])
    return objective(*embeddings, PairIdentities(torch.arange(rows), empty, valid, empty.bool()), temperature, step)


@pytest.mark.parametrize("side", ["query", "target", "both"])
def test_side_chooses_what_the_term_is_about(side):
    query, target = embeddings_of(5, 3, 6, seed=1), embeddings_of(5, 3, 6, seed=2)
    objective = objective_of(side=side)
    _, metrics = call(objective, query, target)
    sides = {"query": [query], "target": [target], "both": [query, target]}[side]
    expected = plain_club(objective.variational, torch.stack(sides), torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(metrics["mutual_information"], expected.mean().detach(), **TOLERANCE)
    names = {"query": ["query"], "target": ["target"], "both": ["query", "target"]}[side]
    assert {name for name in metrics if name.startswith("mutual_information_")} == {
        f"mutual_information_{name}" for name in names
    }


def test_weight_rises_linearly_from_zero_and_multiplies_the_term():
    query, target = embeddings_of(5, 3, 6, seed=1), embeddings_of(5, 3, 6, seed=2)
    objective = objective_of(warmup=10)
    results = [call(objective, query, target, step) for step in (0, 5, 10, 99)]
    assert [metrics["diversity_weight"].item() for _, metrics in results] == [0.0, 0.25, 0.5, 0.5]
    for loss, metrics in results:
        expected = results[0][0] + metrics["diversity_weight"] * metrics["mutual_information"]
        torch.testing.assert_close(loss, expected, **TOLERANCE)


def test_initial_networks_depend_on_the_seed_alone():
    first = objective_of(seed=3).variational.state_dict()
    torch.manual_seed(123)
    again, other = objective_of(seed=3).variational.state_dict(), objective_of(seed=4).variational.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_restored_state_continues_bit_for_bit(tmp_path):
    valid = torch.ones(5, dtype=torch.bool)
    batches = [(embeddings_of(5, 3, 6, seed=n), embeddings_of(5, 3, 6, seed=n + 50)) for n in range(4)]
    straight, before, after = objective_of(), objective_of(), objective_of(seed=9)
    for query, target in batches:
        straight.fit_variational(query, target, valid)
    for query, target in batches[:2]:
        before.fit_variational(query, target, valid)
    torch.save(before.state_dict(), tmp_path / "objective.pt")
    after.load_state_dict(torch.load(tmp_path / "objective.pt", weights_only=True))
    after.to("cpu")
    for query, target in batches[2:]:
        metrics = after.fit_variational(query, target, valid)
    assert all(
        torch.equal(a, b)
        for a, b in zip(straight.variational.parameters(), after.variational.parameters(), strict=True)
    )
    assert torch.isfinite(metrics["mi_negative_log_likelihood"])


def test_the_learning_rate_is_that_of_the_settings_after_a_resume():
    resumed = objective_of(learning_rate=1e-5)
    resumed.load_state_dict(objective_of(learning_rate=1e-3).state_dict())
    assert [group["lr"] for group in resumed.optimizer.param_groups] == [1e-5]


def test_state_of_other_settings_is_refused():
    with pytest.raises(UserError, match="variational networks have the shapes .* but these settings need"):
        objective_of(side="both").load_state_dict(objective_of(side="query").state_dict())
    plain = Objective(ObjectiveSection(diversity="none"), paths=3, dimension=6, seed=0, matryoshka_dims=[])
    with pytest.raises(UserError, match="these settings need none"):
        plain.load_state_dict(objective_of().state_dict())
    with pytest.raises(UserError, match="of none at all"):
        objective_of().load_state_dict(plain.state_dict())
