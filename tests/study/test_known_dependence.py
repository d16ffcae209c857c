"""The known dependence that estimates are judged by, against numerical integrals and samples."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pdfx.study import known_dependence
from pdfx.study.known_dependence import cubed, gaussian, noisy, student, student_information, unit


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("correlation", "freedom"), [(0.0, 3.0), (0.6, 3.0), (0.6, 8.0)])
def test_information_of_student_t_equals_a_sample_mean_of_the_log_ratio(correlation, freedom):
    shape = [[1, correlation], [correlation, 1]]
    pair = stats.multivariate_t([0, 0], shape, df=freedom, seed=0)
    rows = pair.rvs(400_000)
    ratio = pair.logpdf(rows) - stats.t.logpdf(rows, freedom).sum(1)
    error = ratio.std() / math.sqrt(len(ratio))
    assert student_information(correlation, freedom) == pytest.approx(ratio.mean(), abs=4 * error)


def test_information_of_a_noisy_sign_equals_an_integral():
    """Half of the rows around 1, half around -1."""
    noise = 0.7

    def density(y: float) -> float:
        return (stats.norm.pdf(y, 1, noise) + stats.norm.pdf(y, -1, noise)) / 2

    entropy = integrate.quad(lambda y: -density(y) * math.log(density(y)), -8, 8, epsabs=1e-10)[0]
    expected = entropy - stats.norm.entropy(0, noise)
    assert noisy(1, "sign", torch.sign, noise).information == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("function", [torch.abs, torch.square])
def test_numerical_information_does_not_depend_on_the_grid(function, monkeypatch):
    coarse = noisy(1, "f", function, 0.5)
    monkeypatch.setattr(known_dependence, "GRID", 3001)
    assert coarse.information == pytest.approx(noisy(1, "f", function, 0.5).information, abs=1e-4)
    assert coarse.linear_r2 == pytest.approx(0, abs=1e-12) and coarse.information > 0.3


@pytest.mark.parametrize(
    "known", [gaussian(3, 0.6), cubed(3, 0.6), student(3, 0.6, 8), noisy(3, "sign", torch.sign, 0.5), unit(64, 0.6)]
)
def test_samples_have_the_linear_r2_that_is_stated(known):
    first, second = known.draw(30_000, generator()).flatten(0, 1).unbind(1)
    found = [np.corrcoef(first[:, d], second[:, d])[0, 1] ** 2 for d in range(3)]
    # A cube's correlation has an error of some .01 on 60,000 rows; that of the others is smaller.
    assert np.mean(found) == pytest.approx(known.linear_r2, abs=0.03)


def test_unit_vectors_have_length_one_and_the_mean_that_is_asked_for():
    rows = unit(256, 0.5, mean=True).draw(500, generator())[0, :, 0]
    assert torch.allclose(rows.norm(dim=-1), torch.ones(500))
    cosines = (rows @ rows.T)[~torch.eye(500, dtype=torch.bool)]
    share = known_dependence.MEAN_LENGTH**2 / (1 + known_dependence.MEAN_LENGTH**2)
    assert float(cosines.mean()) == pytest.approx(share, abs=0.01)


def test_a_rotated_path_depends_on_all_dimensions_and_not_on_its_own_alone():
    rows = unit(64, 0.9, rotated=True).draw(2000, generator())[0]
    own = [np.corrcoef(rows[:, 0, d], rows[:, 1, d])[0, 1] ** 2 for d in range(64)]
    assert np.mean(own) < 0.1
