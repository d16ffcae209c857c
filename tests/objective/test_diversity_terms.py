"""Every diversity term: its value by definition, and its gradient by finite differences."""

import math

import numpy as np
import pytest
import torch
from objective.diversity_cases import TERMS, diversity_of, embeddings_of, give_predictions

from pdfx.objective.diversity.batchwise import cross_covariance, kernel_dependence, orthogonality
from pdfx.objective.diversity.bounds import (
    influence,
    information,
    leave_one_out,
    spread_over_rows,
    standard_error,
    vclub,
)
from pdfx.objective.diversity.linear import (
    FIT_RIDGE,
    PENALTY_RIDGE,
    SURE,
    LinearPredictor,
    Prediction,
    cross_correlation,
    gaussian_information,
)
from pdfx.objective.diversity.recent import Rows
from pdfx.objective.diversity.variational import VariationalNetworks, fit, negative_log_likelihood

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}  # float64 rounds at 1.1e-16; sums of a few hundred terms of size 100


def equal_rows(values: torch.Tensor) -> Rows:
    return Rows(values, torch.full((values.shape[1],), 1 / values.shape[1], dtype=values.dtype))


def standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / values.std(0)


def ordered_pairs(paths: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(paths) for j in range(paths) if i != j]


@pytest.mark.parametrize(
    ("side", "projection", "rows"),
    [("both", 4, "all valid"), ("query", 2, "a filler"), ("target", 2, "one valid")],
)
@pytest.mark.parametrize("term", TERMS)
def test_gradient_equals_finite_differences(term, side, projection, rows):
    settings = TERMS[term] | {"diversity_side": side, "recent": {"projection": projection}}
    diversity = diversity_of(settings, paths=2, dimension=4)
    valid = torch.tensor([True, rows == "all valid", *(rows != "one valid" for _ in range(2))])
    both = (embeddings_of(2, 4, 2, 4) * valid[:, None, None]).requires_grad_()

    def value(embeddings: torch.Tensor) -> torch.Tensor:
        loss = diversity(embeddings * valid[:, None, None], valid, step=4).loss
        assert loss is not None
        return loss

    assert torch.autograd.gradcheck(value, (both,), eps=1e-6, atol=1e-6, rtol=1e-5)
    gradient = torch.autograd.grad(value(both), both)[0]
    assert not gradient[:, ~valid].any()
    if rows == "all valid":
        assert (gradient[0].abs().amax((-1, -2)) > 0).all(), "every row takes part"
        assert bool(gradient[1].any()) == (side == "both")


def test_gaussian_information_is_that_of_a_ridge_regression_dimension_by_dimension():
    values = embeddings_of(1, 40, 3, 5, seed=3)
    paths = [standardised(values[0, :, k].numpy()) for k in range(3)]
    found = []
    for i, j in ordered_pairs(3):
        x, y = paths[i], paths[j]
        auto, cross = x.T @ x / 40, x.T @ y / 40
        share = (cross * np.linalg.solve(auto + PENALTY_RIDGE * np.eye(5), cross)).sum(0)
        found.append(-0.5 * np.log(1 - (1 - SURE) * share).mean())
    # A dimension's variance gets 1e-6 of the mean one, against division by 0.
    assert float(gaussian_information(equal_rows(values))) == pytest.approx(np.mean(found), rel=1e-5)


def test_cross_correlation_sums_squared_correlations_less_what_chance_shows():
    values = embeddings_of(1, 40, 3, 5, seed=3)
    paths = [standardised(values[0, :, k].numpy()) for k in range(3)]
    squares = [((paths[i].T @ paths[j] / 40) ** 2).sum() / 5 for i, j in ordered_pairs(3)]
    assert float(cross_correlation(equal_rows(values))) == pytest.approx(np.mean(squares) - 5 / 40, rel=1e-5)
    assert float(cross_covariance(equal_rows(values))) == pytest.approx(np.mean(squares), rel=1e-5)


def test_cross_correlation_of_independent_rows_is_zero_on_average():
    found = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        found.append(float(cross_correlation(equal_rows(torch.randn(1, 64, 2, 8, generator=generator).double()))))
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(200)


def test_orthogonality_is_the_mean_squared_cosine_of_unordered_pairs():
    values = embeddings_of(2, 7, 3, 5)
    gram = values @ values.transpose(-1, -2)
    expected = torch.stack([gram[..., 0, 1] ** 2, gram[..., 0, 2] ** 2, gram[..., 1, 2] ** 2]).mean(0)
    torch.testing.assert_close(orthogonality(values), expected, **TOLERANCE)


def test_hsic_is_the_normalised_trace_of_centred_kernels():
    values = embeddings_of(1, 30, 2, 5, seed=5)
    kernels = []
    for k in range(2):
        rows = values[0, :, k].numpy()
        distances = ((rows[:, None] - rows[None]) ** 2).sum(-1)
        kernels.append(np.exp(-distances / distances.mean()))
    centring = np.eye(30) - 1 / 30
    first, second = (centring @ kernel @ centring for kernel in kernels)
    expected = (first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum())
    assert float(kernel_dependence(equal_rows(values))) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("weights", ["equal", "uneven"])
def test_linear_predictor_equals_least_squares(weights):
    """``numpy.linalg.lstsq`` on rows scaled by the roots of their weights; the ridge is rows of their own there."""
    values = embeddings_of(2, 50, 3, 4, seed=7)
    share = torch.ones(50, dtype=torch.float64)
    if weights == "uneven":
        share[::5], share[1::5] = 0, 3
    share /= share.sum()
    rows = Rows(values, share)
    predictor = LinearPredictor(rows)
    fresh = embeddings_of(2, 9, 3, 4, seed=8)
    found = predictor(fresh)
    mean, deviation = rows.mean(), rows.deviation()
    scaled, new = (((x - mean) / deviation).numpy() for x in (values, fresh))
    root = share.sqrt().numpy()[:, None]
    group = 0
    for side in range(2):
        for i, j in ordered_pairs(3):
            left = np.concatenate([root * scaled[side, :, i], math.sqrt(FIT_RIDGE) * np.eye(4)])
            right = np.concatenate([root * scaled[side, :, j], np.zeros((4, 4))])
            solution = np.linalg.lstsq(left, right, rcond=None)[0]
            np.testing.assert_allclose(found.mean[group].numpy(), new[side, :, i] @ solution, rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(found.observed[group].numpy(), new[side, :, j], rtol=1e-12, atol=1e-12)
            group += 1
    assert group == len(found.mean)


def random_prediction(groups: int, rows: int, size: int) -> Prediction:
    generator = torch.Generator().manual_seed(1)
    return Prediction(*(torch.randn(groups, rows, size, generator=generator, dtype=torch.float64) for _ in range(3)))


def log_density(prediction: Prediction, group: int, given: int, observed: int) -> float:
    mean, logvar = prediction.mean[group, given], prediction.logvar[group, given]
    y = prediction.observed[group, observed]
    return float((-0.5 * (y - mean) ** 2 / logvar.exp() - 0.5 * logvar - 0.5 * math.log(2 * math.pi)).sum())


@pytest.mark.parametrize("valid", [[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
def test_bounds_equal_a_plain_double_loop_over_valid_rows(valid):
    prediction, flags = random_prediction(2, 5, 3), torch.tensor(valid, dtype=torch.float64)
    rows = [row for row in range(5) if valid[row]]
    weights = flags / max(1, len(rows))
    for group in range(2):
        club = l1out = 0.0
        if len(rows) > 1:
            positive = sum(log_density(prediction, group, i, i) for i in rows) / len(rows)
            negative = sum(log_density(prediction, group, i, j) for i in rows for j in rows) / len(rows) ** 2
            club = (positive - negative) / 3
            for i in rows:
                others = [math.exp(log_density(prediction, group, j, i)) for j in rows if j != i]
                l1out += (log_density(prediction, group, i, i) - math.log(sum(others) / len(others))) / len(rows) / 3
        found = [float((bound(prediction, weights)[group] * weights).sum()) for bound in (vclub, leave_one_out)]
        assert found == pytest.approx([club, l1out], rel=1e-10, abs=1e-12)


def test_influence_is_that_of_a_row_on_the_estimate():
    """A plain double loop: a row takes part by its x and by its y."""
    prediction, weights = random_prediction(1, 6, 3), torch.tensor([1.0, 1, 0, 1, 1, 1]).double() / 5
    rows = [0, 1, 3, 4, 5]
    table = np.array([[log_density(prediction, 0, i, j) for j in rows] for i in rows]) / 3
    expected = np.diag(table) - table.mean(1) - table.mean(0) + table.mean()
    assert influence(prediction, weights)[0, rows].tolist() == pytest.approx(expected.tolist(), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("correlation", [0.1, 0.5, 0.9])
def test_the_standard_error_is_the_deviation_of_the_estimate_over_batches(correlation):
    generator, weights = torch.Generator().manual_seed(0), torch.full((64,), 1 / 64)
    first, noise = torch.randn(2, 800, 64, 4, generator=generator)
    mean, logvar = correlation * first, torch.full((1, 1, 4), math.log(1 - correlation**2))
    estimates, errors = [], []
    for one, observed in zip(mean, mean + math.sqrt(1 - correlation**2) * noise, strict=True):
        prediction = Prediction(one[None], logvar, observed[None])
        estimates.append(float(information(vclub(prediction, weights), 1, weights)))
        sums = spread_over_rows(influence(prediction, weights), torch.ones(64, dtype=torch.bool))
        errors.append(float(standard_error({f"mi_{name}": value for name, value in sums.items()}, "mi")))
    # A deviation over 800 batches has an error of 2.5 %; that of an estimate from 64 rows has a bias of a few per cent.
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.12)


def test_vclub_is_exact_for_embeddings_far_from_the_origin():
    """All rows share a large mean, as those of real models do: the closed form may not subtract large numbers. Float32
    against float64."""
    prediction = random_prediction(2, 64, 16)
    far = Prediction(prediction.mean + 20, prediction.logvar, prediction.observed + 20)
    weights = torch.full((64,), 1 / 64, dtype=torch.float64)
    exact = information(vclub(far, weights), 1, weights)
    single = Prediction(*(x.float() for x in (far.mean, far.logvar, far.observed)))
    found = information(vclub(single, weights.float()), 1, weights.float())
    # Inputs of size 20 are rounded at 1e-6, and the precision multiplies by e^3 at most.
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


def test_networks_start_as_the_marginal_and_learn():
    networks = VariationalNetworks(1, 2, 6, 32, seed=0).double()
    values = embeddings_of(1, 256, 2, 6, seed=2) * math.sqrt(6)
    start = networks(values)
    assert not start.mean.any() and not start.logvar.any()
    optimizer = torch.optim.AdamW(networks.parameters(), lr=1e-2)
    valid = torch.ones(256, dtype=torch.bool)
    before = float(negative_log_likelihood(start).mean()) / 6
    first = float(fit(networks, optimizer, values, valid, 256, steps=1))
    assert first == pytest.approx(before, rel=1e-12), "the report is from before the last step"
    last = float(fit(networks, optimizer, values, valid, 256, steps=100))
    assert last < first - 0.05
    assert all(parameter.grad is None for parameter in networks.parameters())


@pytest.mark.parametrize("term", [term for term in TERMS if term != "orthogonality"])
def test_a_constant_offset_of_a_path_pays_nothing(term):
    """The sum over rows of the gradient is that of an offset. The remembered rows are those of the batch: else an
    offset would be movement since then."""
    offset, size = offset_gradient(term)
    assert offset < 1e-9 * size


def test_a_constant_offset_of_a_path_pays_in_orthogonality():
    offset, size = offset_gradient("orthogonality")
    assert offset > size


def offset_gradient(term: str) -> tuple[float, float]:
    """Largest entry of the gradient of an offset, and of that of an embedding."""
    both, valid = embeddings_of(2, 24, 3, 6, seed=4).requires_grad_(), torch.ones(24, dtype=torch.bool)
    diversity = diversity_of(TERMS[term] | {"recent": {"share": 1.0}}, remembered=0)
    diversity.learn(both.detach(), valid)
    if diversity.networks is not None:
        give_predictions(diversity.networks)
    diversity.r2 = torch.tensor(1.0, dtype=torch.float64)
    gradient = torch.autograd.grad(diversity(both, valid, step=0).loss, both)[0]
    return float(gradient.sum(1).abs().max()), float(gradient.abs().max())


@pytest.mark.parametrize("term", TERMS)
def test_embeddings_that_are_not_finite_make_a_loss_that_is_not_finite(term):
    """An error on the rank that has them would leave the others waiting."""
    diversity, both = diversity_of(TERMS[term]), embeddings_of(2, 5, 3, 6)
    both[0, 1] = math.nan
    measured = diversity(both, torch.ones(5, dtype=torch.bool), step=0)
    assert not torch.isfinite(measured.loss)
    diversity.summarise(measured.sums)
    healthy = diversity(embeddings_of(2, 5, 3, 6), torch.ones(5, dtype=torch.bool), step=1)
    assert torch.isfinite(healthy.loss)
