"""What the diversity term remembers, when it counts, and how it resumes."""

import math

import numpy as np
import pytest
import torch
from objective.diversity_cases import TERMS, diversity_of, embeddings_of
from torch.nn.functional import normalize

from pdfx.config import ConfigError, ObjectiveSection
from pdfx.errors import UserError
from pdfx.objective.diversity.recent import RecentEmbeddings, joined
from pdfx.objective.diversity.term import FULL_WEIGHT_R2, Diversity

EVERYONE = torch.ones(16, dtype=torch.bool)


def batch(seed: int, rows: int = 16) -> torch.Tensor:
    return embeddings_of(2, rows, 3, 6, seed=seed)


def numbered(first: int, count: int) -> torch.Tensor:
    """[1, count, 1, 1] of consecutive numbers."""
    return torch.arange(first, first + count, dtype=torch.float64).view(1, -1, 1, 1)


def test_the_newest_rows_are_kept():
    recent = RecentEmbeddings(5, 8, seed=0)
    for first in range(0, 12, 3):
        recent.add(numbered(first, 3), torch.tensor([True, False, True]))
    known = recent.known()
    order = known.values.flatten().argsort()
    assert known.values.flatten()[order].tolist() == [7, 8, 9, 10, 11]
    assert (known.weights[order] > 0).tolist() == [False, True, True, False, True]
    assert known.weights.sum() == pytest.approx(1)
    recent.add(numbered(20, 9), torch.ones(9, dtype=torch.bool))
    assert sorted(recent.known().values.flatten().tolist()) == [24, 25, 26, 27, 28]


def test_a_full_memory_resumes_with_every_row_in_its_place():
    straight, before, after = (RecentEmbeddings(5, 8, seed=0) for _ in range(3))
    for recent in (straight, before):
        recent.add(numbered(0, 7), torch.tensor([True] * 6 + [False]))
        recent.add(numbered(7, 2), torch.tensor([True, False]))
    after.load_state_dict(before.state_dict())
    for recent in (straight, after):
        recent.add(numbered(9, 2), torch.tensor([True, True]))
    assert torch.equal(after.known().values, straight.known().values)
    assert torch.equal(after.known().weights, straight.known().weights)


@pytest.mark.parametrize("capacity", [3, 5, 9])
def test_a_resume_with_another_capacity_keeps_the_newest(capacity):
    recent, other = RecentEmbeddings(5, 8, seed=0), RecentEmbeddings(capacity, 8, seed=0)
    for first in (0, 4):
        recent.add(numbered(first, 4), torch.ones(4, dtype=torch.bool))
    other.load_state_dict(recent.state_dict())
    assert sorted(other.known().values.flatten().tolist()) == list(range(8 - min(capacity, 5), 8))
    other.add(numbered(8, 1), torch.ones(1, dtype=torch.bool))
    kept = min(capacity, 6)
    assert sorted(other.known().values.flatten().tolist()) == list(range(9 - kept, 9))


def test_a_batch_weighs_its_share_or_its_number():
    recent = RecentEmbeddings(96, 8, seed=0)
    assert joined(None, numbered(0, 4), torch.ones(4, dtype=torch.bool), 0.25).weights.tolist() == [0.25] * 4
    recent.add(numbered(0, 96), torch.ones(96, dtype=torch.bool))
    known = recent.known()
    small = joined(known, numbered(0, 4), torch.tensor([True, True, False, False]), 0.25)
    assert small.weights[-4:].tolist() == [0.125, 0.125, 0, 0] and float(small.weights.sum()) == pytest.approx(1)
    assert small.values.flatten().tolist() == [*range(96), *range(4)]
    large = joined(known, numbered(0, 96), torch.ones(96, dtype=torch.bool), 0.25).weights
    assert float(large[-96:].sum()) == pytest.approx(0.5)
    assert joined(known, numbered(0, 2), torch.zeros(2, dtype=torch.bool), 0.25).weights[-2:].tolist() == [0, 0]


def test_projections_follow_from_seed_and_step_and_keep_lengths():
    recent = RecentEmbeddings(2048, 64, seed=1)
    like = torch.zeros(1, 1, dtype=torch.float64).expand(1, 512)
    recent.add(torch.randn(1, 2048, 1, 512, dtype=torch.float64), torch.ones(2048, dtype=torch.bool))
    first, again, later = (recent.draw_projection(step, like) for step in (3, 3, 4))
    assert first.shape == (512, 64) and torch.equal(first, again) and not torch.equal(first, later)
    # A squared entry has the mean 1 / 512; the mean of 32,768 of them has a relative error of sqrt(2 / 32768).
    assert float(first.square().mean() * 512) == pytest.approx(1, abs=4 * math.sqrt(2 / 32768))
    assert torch.equal(recent.fixed_projection(like), RecentEmbeddings(9, 64, seed=1).fixed_projection(like))
    assert recent.draw_projection(3, like[:, :64]) is None and recent.fixed_projection(like[:, :64]) is None


def test_few_rows_are_measured_in_few_dimensions():
    recent = RecentEmbeddings(2048, 64, seed=1)
    recent.add(torch.randn(1, 40, 1, 32), torch.ones(40, dtype=torch.bool))
    assert recent.draw_projection(0, torch.zeros(1, 32)).shape == (32, 40 // 8)


@pytest.mark.parametrize("term", [name for name, settings in TERMS.items() if "diversity" not in settings])
def test_nothing_counts_before_anything_is_known(term):
    diversity = diversity_of(TERMS[term], remembered=0)
    both = batch(0).requires_grad_()
    measured = diversity(both, EVERYONE, step=0)
    assert measured.loss.item() == 0 and not torch.autograd.grad(measured.loss, both)[0].any()
    figures = diversity.summarise(measured.sums)
    assert float(figures["mutual_information"]) == float(figures["mi_r2"]) == 0


@pytest.mark.parametrize("predictor", ["linear", "network"])
def test_the_weight_follows_the_r2_of_rows_that_were_not_fitted_to(predictor):
    settings = {
        "mutual_information": {"predictor": predictor, "bound": "vclub", "hidden": 8, "learning_rate": 0.03, "steps": 5}
    }
    independent, dependent = diversity_of(settings, remembered=0), diversity_of(settings, remembered=0)
    weights = {}
    for name, diversity in (("independent", independent), ("dependent", dependent)):
        for step in range(12):
            generator = torch.Generator().manual_seed(step)
            both = torch.randn(2, 64, 3, 6, generator=generator, dtype=torch.float64)
            if name == "dependent":
                both[:, :, 1:] = both[:, :, :1]
            both = normalize(both, dim=-1)
            measured = diversity(both, torch.ones(64, dtype=torch.bool), step)
            figures = diversity.summarise(measured.sums)
            weights[name] = float(measured.metrics["diversity_weight"])
            diversity.learn(both, torch.ones(64, dtype=torch.bool))
    assert weights == {"independent": 0.0, "dependent": 0.5}
    assert float(figures["mi_r2"]) > FULL_WEIGHT_R2
    assert float(figures["path_r2"]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("rows", [2048, 40], ids=["not full", "full"])
@pytest.mark.parametrize("term", TERMS)
def test_restored_state_continues_bit_for_bit(term, rows, tmp_path):
    settings = TERMS[term] | {"recent": {"rows": rows}}
    straight, before, after = (diversity_of(settings, remembered=0, seed=seed) for seed in (0, 0, 9))
    found = []
    for diversity in (straight, before):
        for step in range(3 if diversity is before else 6):
            measured = diversity(batch(step), EVERYONE, step)
            found.append((measured.loss, diversity.summarise(measured.sums)))
            diversity.learn(batch(step), EVERYONE)
    torch.save(before.state_dict(), tmp_path / "state.pt")
    after.seed = after.recent.seed = 0
    after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    after.to("cpu")
    for step in range(3, 6):
        measured = after(batch(step), EVERYONE, step)
        loss, figures = measured.loss, after.summarise(measured.sums)
        # The weight is a part of it, and not 0 with a predictor that needs no training.
        assert torch.equal(loss, found[step][0]) and (bool(loss) or "network" in term)
        assert all(torch.equal(figures[name], found[step][1][name]) for name in found[step][1])
        after.learn(batch(step), EVERYONE)


def test_the_learning_rate_is_that_of_the_settings_after_a_resume():
    network = {"bound": "vclub", "predictor": "network"}
    saved, resumed = (
        diversity_of({"mutual_information": network | {"learning_rate": rate}}, remembered=0) for rate in (1e-3, 1e-5)
    )
    resumed.load_state_dict(saved.state_dict())
    assert [group["lr"] for group in resumed.optimizer.param_groups] == [1e-5]


def test_state_of_other_settings_is_refused():
    network, plain = diversity_of(TERMS["vclub, network"]), diversity_of({})
    with pytest.raises(UserError, match="these settings need none"):
        plain.load_state_dict(network.state_dict())
    with pytest.raises(UserError, match="of none at all"):
        network.load_state_dict(plain.state_dict())
    with pytest.raises(UserError, match="remembers embeddings of 3 paths and 6 dimensions, but this run has 2 and 6"):
        diversity_of({}, paths=2, remembered=0).load_state_dict(plain.state_dict())


def test_other_networks_after_a_reset_and_no_weight_until_they_predict():
    diversity = diversity_of(TERMS["vclub, network"])
    before = diversity.networks.hidden_weight.detach().clone()
    assert float(diversity(batch(0), EVERYONE, 0).metrics["diversity_weight"]) == 0.5
    diversity.reset_networks()
    diversity.networks.double()
    assert not torch.equal(diversity.networks.hidden_weight, before)
    for step in range(2):
        measured = diversity(batch(step), EVERYONE, step)
        assert measured.metrics["diversity_weight"] == diversity.summarise(measured.sums)["mi_r2"] == 0
        # Sums of 16 rows that cancel.
        assert float(measured.metrics["mutual_information"]) == pytest.approx(0, abs=1e-14)


def test_a_network_for_a_bound_in_closed_form_is_refused():
    with pytest.raises((ValueError, ConfigError), match="predictor 'network' belongs to bound 'vclub' or 'l1out'"):
        ObjectiveSection.model_validate({"mutual_information": {"predictor": "network"}})


@pytest.mark.parametrize(
    ("dimension", "rho", "spectrum", "mean"),
    [(64, rho, spectrum, mean) for rho in (0.5, 0.9) for spectrum in (0.0, 0.5) for mean in (0.0, 1.0)]
    + [(1536, 0.5, 0.0, 0.0), (1536, 0.9, 0.5, 1.0)],
)
def test_known_information_is_found_and_none_where_there_is_none(dimension, rho, spectrum, mean):
    """Unit vectors whose dimensions correlate by rho: vCLUB with the true conditional is rho^2 / (1 - rho^2) nats per
    dimension. After 16 steps as many rows are remembered as ever; the mean over the 4 steps after has half of the error
    of one."""
    scale = torch.arange(1, dimension + 1) ** -spectrum
    scale = scale / scale.square().mean().sqrt()
    everyone, found = torch.ones(128, dtype=torch.bool), {}
    for name, correlation in (("dependent", rho), ("independent", 0.0)):
        generator = torch.Generator().manual_seed(0)
        diversity = Diversity(ObjectiveSection(), 2, dimension, seed=0)
        values, errors = [], []
        for step in range(20):
            first, noise = torch.randn(2, 2, 128, dimension, generator=generator)
            second = correlation * first + math.sqrt(1 - correlation**2) * noise
            both = normalize(mean + scale * torch.stack([first, second], dim=2), dim=-1)
            if step >= 16:
                measured = diversity(both, everyone, step)
                values.append(float(measured.metrics["mutual_information"]))
                errors.append(float(diversity.summarise(measured.sums)["mutual_information_error"]))
            diversity.learn(both, everyone)
        found[name] = sum(values) / 4, sum(errors) / 4 / 2
    reachable = rho**2 / (1 - rho**2)
    assert 0.8 * reachable <= found["dependent"][0] <= 1.25 * reachable
    assert abs(found["independent"][0]) <= 4 * found["independent"][1]


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_a_predictor_fitted_from_scratch_to_held_out_rows_agrees_with_the_logged_estimate_within_its_error(rho):
    """Least squares and residual variances by NumPy on 2,048 fresh rows, vCLUB by its definition on 512 others."""
    generator, everyone = torch.Generator().manual_seed(1), torch.ones(128, dtype=torch.bool)
    deviations = torch.arange(1, 25) ** -0.5

    def draw(rows: int) -> torch.Tensor:
        first, noise = torch.randn(2, 2, rows, 24, generator=generator)
        second = rho * first.roll(1, -1) + math.sqrt(1 - rho**2) * noise
        return normalize(0.5 + deviations * torch.stack([first, second], dim=2), dim=-1)

    diversity = Diversity(ObjectiveSection(), 2, 24, seed=0)
    for step in range(20):
        both = draw(128)
        measured = diversity(both, everyone, step)
        figures = diversity.summarise(measured.sums)
        diversity.learn(both, everyone)
    rows, test = draw(2048).double().numpy(), draw(512).double().numpy()
    estimates = []
    for side in range(2):
        for i, j in ((0, 1), (1, 0)):
            x, y = ((one - rows[side, :, k].mean(0)) for one, k in ((rows[side, :, i], i), (rows[side, :, j], j)))
            solution = np.linalg.lstsq(x, y, rcond=None)[0]
            variance = (y - x @ solution).var(0) * 2048 / (2048 - 24)
            # Means of the rows themselves, as the logged estimate has those of its batch.
            given, observed = (test[side, :, k] - test[side, :, k].mean(0) for k in (i, j))
            mean = given @ solution
            matched = -((observed - mean) ** 2 / variance / 2).sum(1).mean()
            apart = -((observed[None] - mean[:, None]) ** 2 / variance / 2).sum(2).mean()
            estimates.append((matched - apart) / 24)
    error = float(figures["mutual_information_error"])
    # 512 rows have half of the error of 128.
    assert abs(float(measured.metrics["mutual_information"]) - np.mean(estimates)) < 3 * math.hypot(error, error / 2)
    assert (np.mean(estimates) > 0.1) == (rho > 0) and error < 0.05
