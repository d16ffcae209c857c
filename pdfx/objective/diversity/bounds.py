"""Estimates of the mutual information between two paths from a predictor q(y|x), and how good that predictor is.

Legend: S sides, G = S K (K - 1) ordered pairs of paths, B rows, d dimension.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pdfx.objective.diversity.linear import Prediction

Sums = dict[str, Tensor]


@dataclass
class Measured:
    """What one step says about the paths of this rank.

    Attributes:
        loss: scalar, the weighted term; None without one.
        metrics: scalars whose mean over ranks is reported.
        sums: scalars that are added up over ranks, for ``Diversity.summarise``.
    """

    loss: Tensor | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)
    sums: Sums = field(default_factory=dict)


def vclub(prediction: Prediction, weights: Tensor) -> Tensor:
    """[G, B], nats per dimension: what each row adds to ``1/B sum_i log q(y_i|x_i) - 1/B^2 sum_ij log q(y_j|x_i)``
    (Cheng et al., CLUB, arXiv 2006.12013, equation 13); the weighted sum over rows is the estimate.

    The all-pairs term is exact in B d operations. With m and v the mean and variance of y over the batch, a row's two
    terms differ by ``(v - (y - m)^2 + 2 (mu - m)(y - m)) / 2 s^2``, which has no difference of large numbers; logvar's
    own term cancels.

    It is an upper bound of the information if q is the true conditional. With a constant variance it is
    ``tr Cov(mu(x), y) / s^2``: it penalises what q predicts and nothing else. It lies if q lags behind the encoder: it
    is too low then, and may be negative.

    Args:
        weights: [B], summing to 1, or 0 for all.
    """
    mean, observed = prediction.mean, prediction.observed
    average, variance = batch_moments(observed, weights)
    centred = observed - average
    spread = variance - centred.square() + 2 * (mean - average) * centred
    return 0.5 * (spread * torch.exp(-prediction.logvar)).mean(-1)


@torch.no_grad()
def influence(prediction: Prediction, weights: Tensor) -> Tensor:
    """[G, B], nats per dimension: how far each row moves the estimate ``vclub``, so that their spread is its standard
    error. A row takes part in all pairs twice, by its x and by its y; ``vclub`` alone leaves the second out (Hoeffding,
    A Class of Statistics with Asymptotically Normal Distribution, 1948, section 5)."""
    average, _ = batch_moments(prediction.observed, weights)
    centred, precision = prediction.observed - average, torch.exp(-prediction.logvar).expand_as(prediction.mean)
    columns = weights[:, None]
    sure = (columns * precision).sum(1, keepdim=True)
    towards = (columns * precision * (prediction.mean - average)).sum(1, keepdim=True)
    seen = (centred * towards - 0.5 * centred.square() * sure).mean(-1)
    return vclub(prediction, weights) - seen + (seen * weights).sum(1, keepdim=True)


def leave_one_out(prediction: Prediction, weights: Tensor) -> Tensor:
    """[G, B], nats per dimension: what each row adds to ``1/B sum_i [log q(y_i|x_i) - log mean_{j != i} q(y_i|x_j)]``
    (L1Out, Poole et al., On Variational Bounds of Mutual Information, arXiv 1905.06922, equation 11).

    Cost: three products of [B, d] and [d, B] a pair of paths, and B^2 numbers. With the true conditional it is an upper
    bound, and never above ``vclub``, as the logarithm of a mean is not below the mean of logarithms. With another q it
    may be on either side: of independent rows it is below 0, where q predicts what is not there.
    """
    mean, logvar, observed = prediction.mean, prediction.logvar.expand_as(prediction.mean), prediction.observed
    precision = torch.exp(-logvar)
    # log q(y_i | x_j) without its constant, [G, i, j].
    squares = (
        torch.bmm(observed.square(), precision.transpose(1, 2))
        - 2 * torch.bmm(observed, (mean * precision).transpose(1, 2))
        + ((mean.square() * precision) + logvar).sum(-1).unsqueeze(1)
    )
    scores = -0.5 * squares
    own = scores.diagonal(dim1=1, dim2=2)
    present = weights > 0
    excluded = torch.eye(len(weights), dtype=torch.bool, device=weights.device) | ~present
    count = present.sum().to(scores.dtype)
    others = scores.masked_fill(excluded, -torch.inf).logsumexp(-1) - (count - 1).clamp_min(1).log()
    counts = present & (count > 1)
    return torch.where(counts, own - others.masked_fill(~counts, 0), 0) / observed.shape[-1]


def batch_moments(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [G, 1, d] of ``values`` [G, B, d] over rows of weights [B]."""
    column = weights[:, None]
    mean = (column * values).sum(1, keepdim=True)
    return mean, (column * (values - mean).square()).sum(1, keepdim=True)


@torch.no_grad()
def quality(prediction: Prediction, valid: Tensor) -> Sums:
    """How well q predicts these rows, as sums over rows, so that adding them up over ranks pools the ranks' rows.

    Returns:
        ``residual``: squares of y - mu(x), ``variation``: squares of y, which is standardised by the remembered rows.
        So R^2 = 1 - residual / variation compares with predicting the mean of those.
    """
    flags = valid.to(prediction.mean.dtype)[:, None]
    residual = (flags * (prediction.observed - prediction.mean).square()).sum()
    return {"residual": residual, "variation": (flags * prediction.observed.square()).sum()}


def information(rows: Tensor, sides: int, weights: Tensor) -> Tensor:
    """[S]: weighted sums over rows of ``rows`` [G, B], averaged over a side's pairs of paths."""
    return (rows * weights).sum(1).view(sides, -1).mean(1)


@torch.no_grad()
def spread_over_rows(rows: Tensor, valid: Tensor) -> Sums:
    """Sums that give the standard error of an estimate: number, sum and sum of squares over valid rows of how far a row
    moves it on average over pairs of paths. ``rows`` [G, B], ``valid`` [B]."""
    each = rows.mean(0).masked_fill(~valid, 0)
    return {"rows": valid.sum().to(each.dtype), "sum": each.sum(), "squares": each.square().sum()}


def standard_error(sums: Sums, kind: str) -> Tensor:
    """Of an estimate over the rows of all ranks, from the totals of ``spread_over_rows``, prefixed with ``kind_``."""
    count = sums[f"{kind}_rows"].clamp_min(1)
    variance = (sums[f"{kind}_squares"] / count - (sums[f"{kind}_sum"] / count).square()).clamp_min(0)
    return (variance / count).sqrt()


def r2_of(sums: Sums, kind: str) -> Tensor:
    """R^2 from the totals of ``quality``, prefixed with ``kind_``; 0 if nothing varies."""
    residual, variation = sums[f"{kind}_residual"], sums[f"{kind}_variation"]
    return torch.where(variation > 0, 1 - residual / variation, 0)
