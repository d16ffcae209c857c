"""Pairs of paths whose dependence is known, to judge estimates of it.

Legend: n rows, D dimension. All information is in nats per dimension. Each dimension of the second path depends on the
same dimension of the first; a common rotation or projection keeps that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

MEAN_LENGTH = 1.25
"""Length of a common mean over that of what varies: different inputs then have a mean cosine of .61, as measured on
embeddings of a small model."""
GRID = 1001
"""Points of a numerical integral; a test compares with three times as many."""


@dataclass(frozen=True)
class Known:
    """Two paths with known dependence.

    Attributes:
        information: mutual information of a dimension of one path with that of the other.
        linear_r2: share of a dimension that the best linear map of the other path explains.
        sample: from a number of rows n and a generator to [n, 2, D].
    """

    name: str
    dimension: int
    information: float
    linear_r2: float
    sample: Callable[[int, torch.Generator], Tensor]

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """[2, n, 2, D]: two sides, drawn independently."""
        return self.sample(2 * rows, generator).unflatten(0, (2, rows))


def gaussian_information(correlation: float) -> float:
    """Of two Gaussians (Cover and Thomas, Elements of Information Theory, example 8.5.1)."""
    return -0.5 * math.log1p(-(correlation**2))


def correlated(rows: int, dimension: int, correlation: float, generator: torch.Generator) -> Tensor:
    """[n, 2, D] of standard Gaussians."""
    first, noise = torch.randn(2, rows, dimension, generator=generator)
    return torch.stack([first, correlation * first + math.sqrt(1 - correlation**2) * noise], dim=1)


def gaussian(dimension: int, correlation: float) -> Known:
    """Standard Gaussians."""
    return Known(
        f"Gaussian, correlation {correlation:g}" if correlation else "independent Gaussian",
        dimension,
        gaussian_information(correlation),
        correlation**2,
        lambda rows, generator: correlated(rows, dimension, correlation, generator),
    )


def unit(dimension: int, correlation: float, uneven: bool = False, mean: bool = False, rotated: bool = False) -> Known:
    """Gaussians scaled to unit length, as embeddings are. The length that is lost is one number of D, so the truth is
    that of the Gaussians, and a little less.

    Args:
        uneven: standard deviations fall as ``1 / sqrt(number of the dimension)``.
        mean: both paths get an offset each, ``MEAN_LENGTH`` times as long as what varies.
        rotated: the second path is turned, so that each of its dimensions depends on all of the first.
    """
    constant = torch.Generator().manual_seed(dimension)
    deviations = torch.arange(1, dimension + 1) ** (-0.5 if uneven else 0.0)
    offsets = MEAN_LENGTH * deviations.norm() * normalize(torch.randn(2, dimension, generator=constant), dim=-1)
    rotation = torch.linalg.qr(torch.randn(dimension, dimension, generator=constant))[0] if rotated else None

    def sample(rows: int, generator: torch.Generator) -> Tensor:
        paths = deviations * correlated(rows, dimension, correlation, generator)
        if rotation is not None:
            paths = torch.stack([paths[:, 0], paths[:, 1] @ rotation], dim=1)
        return normalize(paths + offsets if mean else paths, dim=-1)

    looks = ", ".join(["uneven" if uneven else "flat", *["mean"] * mean, *["rotated"] * rotated])
    kind = f"unit, correlation {correlation:g}" if correlation else "independent unit"
    return Known(f"{kind} ({looks})", dimension, gaussian_information(correlation), correlation**2, sample)


def cubed(dimension: int, correlation: float) -> Known:
    """Cubes of Gaussians: heavy tails, and the information of the Gaussians, as a cube can be undone.

    From ``x^3 = H3 + 3 H1`` in Hermite polynomials, whose variances are 6 and 1, the correlation of two cubes is
    ``(6 r^3 + 9 r) / 15``.
    """
    linear = (6 * correlation**3 + 9 * correlation) / 15
    return Known(
        f"cubes of Gaussians, correlation {correlation:g}",
        dimension,
        gaussian_information(correlation),
        linear**2,
        lambda rows, generator: correlated(rows, dimension, correlation, generator) ** 3,
    )


def student(dimension: int, correlation: float, freedom: float) -> Known:
    """Pairs of numbers with a bivariate Student t distribution; they depend on one another even at correlation 0."""

    def sample(rows: int, generator: torch.Generator) -> Tensor:
        # torch has no seeded gamma variates; a sum of squares of Gaussians is chi-squared for a whole number.
        squares = torch.randn(int(freedom), rows, 1, dimension, generator=generator).square().sum(0)
        return correlated(rows, dimension, correlation, generator) / (squares / freedom).sqrt()

    return Known(
        f"Student t, {freedom:g} degrees, correlation {correlation:g}",
        dimension,
        student_information(correlation, freedom),
        correlation**2,
        sample,
    )


def student_information(correlation: float, freedom: float) -> float:
    """Of a bivariate Student t: twice the entropy of one number less that of the pair (Guerrero-Cusumano, A measure of
    total variability for the multivariate t distribution, 1996)."""

    def entropy(size: int) -> float:
        nu = torch.tensor(freedom, dtype=torch.float64)
        scale = torch.lgamma((nu + size) / 2) - torch.lgamma(nu / 2) - size / 2 * torch.log(nu * math.pi)
        return float((nu + size) / 2 * (torch.digamma((nu + size) / 2) - torch.digamma(nu / 2)) - scale)

    return 2 * entropy(1) - entropy(2) + gaussian_information(correlation)


def noisy(dimension: int, name: str, function: Callable[[Tensor], Tensor], noise: float) -> Known:
    """A function of a Gaussian, scaled to variance 1, plus Gaussian noise: ``I(x; y) = h(y) - h(noise)``, by numerical
    integration."""
    grid = torch.linspace(-8, 8, GRID, dtype=torch.float64)
    weights = torch.exp(-0.5 * grid.square())
    weights /= weights.sum()
    values = function(grid)
    center = float(weights @ values)
    scale = float((weights @ (values - center).square()).sqrt())
    values = (values - center) / scale

    def sample(rows: int, generator: torch.Generator) -> Tensor:
        first, error = torch.randn(2, rows, dimension, generator=generator)
        return torch.stack([first, (function(first) - center) / scale + noise * error], dim=1)

    # What is left of 0 after rounding would be divided by.
    linear = round(float(weights @ (values * grid)) ** 2 / (1 + noise**2), 12)
    return Known(f"{name} of a Gaussian, noise {noise:g}", dimension, _additive(values, weights, noise), linear, sample)


def _additive(values: Tensor, weights: Tensor, noise: float) -> float:
    """Mutual information of a variable that is one of ``values`` with that plus Gaussian noise."""
    seen = torch.linspace(float(values.min()) - 8 * noise, float(values.max()) + 8 * noise, GRID, dtype=torch.float64)
    density = torch.exp(-0.5 * ((seen[:, None] - values) / noise).square()) @ weights / (noise * math.sqrt(2 * math.pi))
    entropy = -torch.special.xlogy(density, density).sum() * (seen[1] - seen[0])
    return float(entropy) - 0.5 * math.log(2 * math.pi * math.e * noise**2)
