"""Dependence between paths that a linear map finds, in closed form from second moments.

Legend: S sides, n rows, K paths, d dimension of a projected embedding. Pairs of paths are ordered: one predicts, the
other is predicted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pdfx.objective.diversity.recent import Rows

PENALTY_RIDGE = 0.1
"""Added to the variance, 1, of each standardised dimension of a predictor, in terms that are minimised: directions with
next to no variance should not decide where an encoder goes. The value is ours."""
FIT_RIDGE = 1e-4
"""The same in a prediction that is only measured: it just keeps the matrix invertible in float32."""
SURE = 1e-3
"""Share of a dimension's variance that always counts as unexplained, so that information stays finite."""
LARGEST_CORRECTION = 4.0
"""Of a residual variance for the degrees of freedom that the fit used up."""


def second_moments(rows: Rows) -> Tensor:
    """[S, K, d, K, d]: correlations of all dimensions of all paths."""
    standard = rows.centred() / rows.deviation() * rows.weights.sqrt()[:, None, None]
    sides, _, paths, size = standard.shape
    flat = standard.flatten(2)
    return (flat.transpose(1, 2) @ flat).view(sides, paths, size, paths, size)


def other_paths(table: Tensor) -> Tensor:
    """[S, K, K, ...] as [S, K(K-1), ...]: the ordered pairs of different paths."""
    paths = table.shape[1]
    apart = ~torch.eye(paths, dtype=torch.bool)
    first, second = apart.nonzero(as_tuple=True)
    return table[:, first.to(table.device), second.to(table.device)]


def auto_moments(moments: Tensor) -> Tensor:
    """[S, K, d, d] of [S, K, d, K, d]."""
    return moments.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


def cholesky(moments: Tensor, ridge: float) -> Tensor:
    """[S, K, d, d]: lower factors of the moments within each path, plus ``ridge``; NaN if there is none, so that the
    loss says that embeddings are not finite, on all ranks alike, and no rank stops alone."""
    auto = auto_moments(moments)
    identity = torch.eye(auto.shape[-1], dtype=auto.dtype, device=auto.device)
    factor, failed = torch.linalg.cholesky_ex(auto + ridge * identity)
    return factor.masked_fill(failed[..., None, None] > 0, torch.nan)


def explained_share(moments: Tensor, ridge: float) -> Tensor:
    """[S, K(K-1), d]: R^2 of each dimension of a path by ridge regression on another path, on the rows themselves."""
    sides, paths, size = moments.shape[:3]
    whitened = torch.linalg.solve_triangular(cholesky(moments, ridge), moments.flatten(3), upper=False)
    return other_paths(whitened.square().sum(2).view(sides, paths, paths, size))


def gaussian_information(rows: Rows) -> Tensor:
    """[S], nats per dimension: mutual information that a linear map from one path to another explains, dimension by
    dimension, ``-1/2 log(1 - R_d^2)``, averaged over dimensions and ordered pairs.

    It is E log q(y|x) - E log q(y) with the best linear-Gaussian q with a diagonal covariance, solved again from the
    rows that the gradient is taken at, so no encoder is faster than q (ours; for one dimension it is the mutual
    information of Gaussians, Cover and Thomas, Elements of Information Theory, section 8.5).

    Cost: n K^2 d^2 + K d^3 multiplications, K d (K d + n) numbers. At d = 128, K = 4, n = 2,176: 2 GFLOP a side.
    It is a lower bound of the information between Gaussians, and it lies where dependence is not linear: it is then 0.
    On few rows it is above 0 for independent paths, by about d / 2n.
    """
    share = explained_share(second_moments(rows), PENALTY_RIDGE)
    return -0.5 * torch.log1p(-(1 - SURE) * share).mean((1, 2))


def cross_correlation(rows: Rows) -> Tensor:
    """[S]: sum of squared correlations between the dimensions of two paths, per dimension, averaged over pairs, less
    what independent rows would show, ``d * sum of squared weights`` (Barlow twins' off-diagonal, Zbontar et al., arXiv
    2103.03230, between paths instead of views; from running moments: ours).

    Cost as of ``gaussian_information`` without its K d^3. It bounds no information. It lies where paths have few
    directions: correlation within a path counts several times.
    """
    moments = second_moments(rows)
    sides, paths, size = moments.shape[:3]
    squares = other_paths(moments.square().sum((2, 4)).view(sides, paths, paths)) / size
    return squares.mean(1) - size * rows.weights.square().sum()


@dataclass(frozen=True)
class Prediction:
    """Each path as predicted from each other one, G = S K (K - 1) ordered pairs.

    Attributes:
        mean: [G, B, d], of q(y|x).
        logvar: [G, B, d] or [G, 1, d], logarithm of its variance.
        observed: [G, B, d], y, in the same units: standardised.
    """

    mean: Tensor
    logvar: Tensor
    observed: Tensor

    def of_sides(self, sides: int, chosen: list[int]) -> "Prediction":
        """The pairs of the ``chosen`` ones of all ``sides``."""
        tensors = (self.mean, self.logvar, self.observed)
        return Prediction(*(tensor.unflatten(0, (sides, -1))[chosen].flatten(0, 1) for tensor in tensors))


class LinearPredictor:
    """The linear-Gaussian q(y|x) of each ordered pair of paths, by least squares on ``rows``, which get no gradient.

    With rows that it was not fitted to, its R^2 is an honest one. Equals ``numpy.linalg.lstsq`` but for a ridge of 1e-4
    of the variance.

    Args:
        rows: of d dimensions.
        projection: [D, d], how they were projected and others will be; None if they were not.
    """

    @torch.no_grad()
    def __init__(self, rows: Rows, projection: Tensor | None = None):
        self.projection = projection
        self.mean, self.deviation = rows.mean(), rows.deviation()
        moments = second_moments(rows)
        self.sides, self.paths, size = moments.shape[:3]
        solution = torch.cholesky_solve(moments.flatten(3), cholesky(moments, FIT_RIDGE))
        self.coefficients = other_paths(
            solution.view(self.sides, self.paths, size, self.paths, size).transpose(2, 3)
        ).flatten(0, 1)
        """[G, d, d]."""
        explained = explained_share(moments, FIT_RIDGE).flatten(0, 1)
        # As many degrees of freedom as dimensions are used up by the fit.
        effective = 1 / rows.weights.square().sum()
        spent = (effective / (effective - size - 1).clamp_min(1)).clamp_max(LARGEST_CORRECTION)
        self.logvar = ((1 - explained).clamp_min(SURE) * spent).log().unsqueeze(1)
        """[G, 1, d]."""
        apart = ~torch.eye(self.paths, dtype=torch.bool)
        self.given, self.predicted = (index.to(moments.device) for index in apart.nonzero(as_tuple=True))

    def __call__(self, both: Tensor) -> Prediction:
        """Predict the rows of ``both`` [S, B, K, D], which keep their gradient, as projected."""
        both = both if self.projection is None else both @ self.projection
        by_path = ((both - self.mean) / self.deviation).transpose(1, 2)
        given, observed = (by_path[:, index].flatten(0, 1) for index in (self.given, self.predicted))
        return Prediction(torch.bmm(given, self.coefficients), self.logvar, observed)
