"""The true information of two linear maps, and gradients that are compared with its gradient."""

import numpy as np
import pytest
import torch

from pdfx.study.gradient_quality import OWN_NOISE, gradient_quality, true_information


def test_true_information_is_that_of_the_canonical_correlations():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    variances = torch.rand(6, generator=generator, dtype=torch.float64) + 0.1
    first, second = maps.numpy()
    shared = np.diag(variances.numpy())
    auto = [(1 + OWN_NOISE**2) * one.T @ shared @ one for one in (first, second)]
    whitened = np.linalg.inv(np.linalg.cholesky(auto[0])) @ first.T @ shared @ second
    correlations = np.linalg.svd(whitened @ np.linalg.inv(np.linalg.cholesky(auto[1])).T, compute_uv=False)
    expected = -0.5 * np.log(1 - correlations**2).sum() / 3
    assert float(true_information(maps, variances)) == pytest.approx(expected, rel=1e-10)


def test_a_step_down_the_default_term_lowers_the_true_information_and_orthogonality_does_not():
    found = gradient_quality({}, 8, False, 128, 20, seed=0)
    blind = gradient_quality({"diversity": "orthogonality"}, 8, False, 128, 20, seed=0)
    assert found["cosine"] > 0.4 and found["share"] > 0.4 and found["cosine_averaged"] > found["cosine"]
    # Two random directions in 2 x 16 x 8 dimensions have a cosine of about .06.
    assert abs(blind["cosine_averaged"]) < 0.2 and abs(blind["share"]) < 0.2
