"""How alike paths are, on embeddings without their means: a constant offset per path makes no two inputs differ, so it
is not diversity.

Legend: S sides, B rows of a batch, n rows, K paths, D dimension, d dimension of a projection.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pdfx.objective.diversity.batchwise import pair_cosines, unordered_pairs

ALIGNED_ROWS = 512
"""Rows whose CKA is logged; that of independent paths has an error of some .003 then."""
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Relative to the variance of a standardised dimension."""
FOLDS = 5
MOST_ROWS, MOST_DIMENSIONS = 4096, 256
"""Of a regression between paths of evaluated items by ``held_out_r2``, which then takes about a second a pair."""
MOST_GRAM_ROWS = 1536
"""Of one by ``r2_from_grams``, which then takes some ten seconds a path on a core, and far less on a GPU."""


def centred_cosines(centred: Tensor, valid: Tensor) -> Tensor:
    """[K(K-1)/2]: for each pair of paths the sum over valid rows of the cosine between the two, mean over sides.

    Args:
        centred: embeddings less their mean, [S, B, K, D].
        valid: bool [B].
    """
    cosines = pair_cosines(functional.normalize(centred, dim=-1)).mean(0)
    return cosines.masked_fill(~valid[:, None], 0).sum(0)


def linear_alignment(values: Tensor, valid: Tensor) -> Tensor:
    """[S]: linear CKA, mean over pairs of paths: 1 for paths that are rotations of one another, 0 on average for
    independent ones, also on few rows (Kornblith et al., arXiv 1905.00414, equation 4, with the unbiased estimate of
    HSIC, Song et al., Feature Selection via Dependence Maximization, 2012, equation 5).

    Args:
        values: [S, n, K, d].
        valid: bool [n]; 4 rows at least, or the result is 0.
    """
    flags = valid.to(values.dtype)[:, None, None]
    # In the dtype of the values: a whole number would be divided by in float32.
    rows = flags.sum()
    # In any place the same; near the mean there are no differences of large numbers.
    centred = (values - (flags * values).sum(1, keepdim=True) / rows.clamp_min(1)) * flags
    by_path = centred.transpose(1, 2)
    # Of the Gram matrices without their diagonals: sums of rows, and products, whichever way is cheaper.
    if by_path.shape[2] < by_path.shape[3]:
        grams = by_path @ by_path.transpose(-1, -2)
        grams = (grams - torch.diag_embed(grams.diagonal(dim1=-2, dim2=-1))).flatten(2)
        sums, traces = grams.unflatten(2, (-1, by_path.shape[2])).sum(-1), grams @ grams.transpose(1, 2)
    else:
        own = by_path.square().sum(-1)
        sums = (by_path @ by_path.sum(2).unsqueeze(-1)).squeeze(-1) - own
        products = torch.stack([(one.transpose(1, 2).unsqueeze(1) @ by_path) for one in by_path.unbind(1)], dim=1)
        traces = products.square().sum((-1, -2)) - own @ own.transpose(1, 2)
    totals = sums.sum(-1)
    constant = totals.unsqueeze(-1) * totals.unsqueeze(-2) / ((rows - 1) * (rows - 2)).clamp_min(1)
    dependence = traces + constant - 2 / (rows - 2).clamp_min(1) * (sums @ sums.transpose(1, 2))
    norms = dependence.diagonal(dim1=1, dim2=2)
    first, second = unordered_pairs(dependence.shape[1])
    scale = (norms[:, first] * norms[:, second]).clamp_min(0).sqrt()
    found = torch.where(scale > 0, dependence[:, first, second] / scale.clamp_min(1e-30), 0)
    return torch.where(rows > 3, found.mean(1), 0)


def alignment_of_some(values: Tensor, valid: Tensor) -> Tensor:
    """``linear_alignment`` in all dimensions, of ``ALIGNED_ROWS`` rows at most, evenly spaced."""
    some = slice(None, None, -(-len(valid) // ALIGNED_ROWS))
    return linear_alignment(values[:, some], valid[some])


def held_out_r2(given: Tensor, predicted: Tensor, folds: int = FOLDS) -> float:
    """R^2 of ``predicted`` from ``given`` by ridge regression, each row predicted from the other folds. The ridge is
    the one of a few that predicts best, so the figure is hardly above what a ridge chosen beforehand gives.

    Args:
        given: [n, D].
        predicted: [n, D].
        folds: of consecutive rows; each fold is predicted once.
    """
    given, predicted = given.double(), predicted.double()
    numbers = torch.arange(len(given)) * folds // len(given)
    residuals = torch.zeros(len(RIDGES), dtype=torch.float64)
    variation = 0.0
    for fold in range(folds):
        test = numbers == fold
        mean, deviation = given[~test].mean(0), given[~test].std(0).clamp_min(1e-12)
        x, inputs = ((given[rows] - mean) / deviation for rows in (~test, test))
        offset = predicted[~test].mean(0)
        values, vectors = torch.linalg.eigh(x.T @ x / len(x))
        products = vectors.T @ (x.T @ (predicted[~test] - offset)) / len(x)
        for number, ridge in enumerate(RIDGES):
            guess = (inputs @ vectors) @ (products / (values + ridge)[:, None])
            residuals[number] += (predicted[test] - offset - guess).square().sum()
        variation += float((predicted[test] - offset).square().sum())
    return float(1 - residuals.min() / variation) if variation > 0 else 0.0


def paths_r2(paths: Tensor) -> float:
    """Held-out R^2 of one path from another in all dimensions, averaged over ordered pairs of paths of ``paths``
    [n, K, D]; of at most ``MOST_ROWS`` rows, or ``MOST_GRAM_ROWS`` if D is above ``MOST_DIMENSIONS``."""
    if paths.shape[-1] > MOST_DIMENSIONS:
        return r2_from_grams(paths[:MOST_GRAM_ROWS])
    rows = paths[:MOST_ROWS]
    pairs = [(i, j) for i in range(rows.shape[1]) for j in range(rows.shape[1]) if i != j]
    return sum(held_out_r2(rows[:, i], rows[:, j]) for i, j in pairs) / len(pairs)


def r2_from_grams(paths: Tensor, folds: int = FOLDS) -> float:
    """R^2 of one path from another by ridge regression, averaged over ordered pairs of paths, each row predicted from
    the other folds, and the ridge of a fold chosen by the other folds.

    Everything follows from products of rows (Saunders et al., Ridge Regression Learning Algorithm in Dual Variables,
    1998), so that all D dimensions take part whatever D. With Q the map from values to the residuals of a fit to all
    rows, those of a fit without a fold F are ``Q_FF^-1 Q_F`` times the values (as for one row in Allen, The
    Relationship between Variable Selection and Data Augmentation, 1974). Of independent paths it is 0 or a little less.
    With fewer rows than dimensions it is too low, unless few directions hold most of the variance.

    Args:
        paths: [n, K, D].
        folds: of consecutive rows.

    Cost: K (D + 4 ridges n) n^2 multiplications, 4 n^2 numbers.
    """
    paths = paths.double()
    count, others = len(paths), paths.shape[1] - 1
    numbers = torch.arange(count, device=paths.device) * folds // count
    everyone = torch.eye(count, dtype=paths.dtype, device=paths.device)
    centred = (paths - paths.mean(0)).unbind(1)
    grams = torch.stack([path @ path.T for path in centred])
    without_fit = _left_out(everyone - 1 / count, numbers)
    # In units of what there is to predict. A path that does not vary has none, and counts as predicted by nothing.
    variations = torch.stack([_squares(without_fit, gram).sum() for gram in grams])
    outputs = grams / variations.clamp_min(1e-300)[:, None, None]
    varying = variations > 0
    found = []
    for k, path in enumerate(centred):
        inputs = path / path.std(0).clamp_min(1e-12)
        moments = inputs @ inputs.T / count
        residuals = torch.zeros(len(RIDGES), folds, dtype=paths.dtype, device=paths.device)
        for number, ridge in enumerate(RIDGES):
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments + ridge * everyone))
            left_out = _left_out(ridge * inverse - 1 / count, numbers)
            residuals[number].index_add_(0, numbers, _squares(left_out, outputs.sum(0) - outputs[k]))
        chosen = (residuals.sum(1, keepdim=True) - residuals).argmin(0)
        explained = varying.sum() - varying[k].long() - residuals.gather(0, chosen[None]).sum()
        found.append(explained / others)
    return float(torch.stack(found).mean())


def _left_out(residuals: Tensor, numbers: Tensor) -> Tensor:
    """[n, n]: the map from values to residuals of rows that a fit leaves out with their fold, from that of a fit to all
    rows."""
    blocks = []
    for fold in numbers.unique():
        own = numbers == fold
        blocks.append(torch.linalg.solve(residuals[own][:, own], residuals[own]))
    return torch.cat(blocks)


def _squares(of_rows: Tensor, gram: Tensor) -> Tensor:
    """[n]: squared lengths of ``of_rows`` [n, n] times rows with these inner products."""
    return ((of_rows @ gram) * of_rows).sum(-1)
