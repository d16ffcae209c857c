"""Dependence between paths within one batch: no state, and so no standardisation by more rows than the batch has.

Legend: S sides, B rows, K paths, D dimension; K is 2 or more.
"""

import torch
from torch import Tensor

from pdfx.objective.diversity.recent import Rows


def unordered_pairs(paths: int) -> tuple[Tensor, Tensor]:
    """The numbers i < j of the K(K-1)/2 pairs of paths."""
    first, second = torch.triu_indices(paths, paths, offset=1)
    return first, second


def pair_cosines(embeddings: Tensor) -> Tensor:
    """[..., K(K-1)/2]: the products e_i . e_j of the unordered pairs of paths of unit ``embeddings`` [..., K, D]."""
    first, second = unordered_pairs(embeddings.shape[-2])
    return torch.matmul(embeddings, embeddings.transpose(-1, -2))[..., first, second]


def orthogonality(both: Tensor) -> Tensor:
    """[S, B]: ``2 / (K(K-1)) * sum over i < j of (e_i . e_j)^2`` for unit ``both`` [S, B, K, D]; 0 if the paths are
    orthogonal, 1 if they agree.

    Cost: B K^2 D multiplications. It bounds nothing: paths that are rotations of one another are orthogonal and predict
    each other fully; it can even make them more predictable.
    """
    return pair_cosines(both).square().mean(-1)


def cross_covariance(rows: Rows) -> Tensor:
    """[S]: ``|C_ij|_F^2 / D`` with C the correlations between the dimensions of two paths over the batch, averaged over
    pairs (Barlow twins' redundancy term between paths; Zbontar et al., arXiv 2103.03230).

    Computed from B x B inner products: K B^2 D multiplications, K B^2 numbers. Independent rows give D / B, so it
    tells dependence from chance only if B is above D.
    """
    gram = grams(rows.centred() / rows.deviation() * rows.weights.sqrt()[:, None, None])
    first, second = unordered_pairs(gram.shape[1])
    return (gram[:, first] * gram[:, second]).sum((-1, -2)).mean(1) / rows.values.shape[-1]


def grams(rows: Tensor) -> Tensor:
    """[S, K, B, B]: inner products of the rows of ``rows`` [S, B, K, D] of each path."""
    by_path = rows.transpose(1, 2)
    return by_path @ by_path.transpose(-1, -2)


def kernel_dependence(rows: Rows) -> Tensor:
    """[S]: HSIC of a Gaussian kernel, normalised as in centred kernel alignment, averaged over pairs of paths: from 0
    to 1, and 1 for paths that are alike (Gretton et al., Measuring Statistical Dependence with Hilbert-Schmidt Norms,
    2005; Kornblith et al., arXiv 1905.00414).

    The kernel's width is the mean squared distance of a path's rows. Cost: K B^2 D multiplications, K B^2 numbers. It
    sees dependence of any form. Independent rows give above 0 (about .1 at B = 128), which it cannot lower.
    """
    gram = grams(rows.centred())
    squares = gram.diagonal(dim1=-2, dim2=-1)
    distances = squares.unsqueeze(-1) + squares.unsqueeze(-2) - 2 * gram
    outer = rows.weights[:, None] * rows.weights
    width = (distances * outer).sum((-1, -2), keepdim=True).clamp_min(1e-20)
    kernel = torch.exp(-distances / width)
    column = kernel @ rows.weights
    centred = kernel - column.unsqueeze(-1) - column.unsqueeze(-2) + (column @ rows.weights)[..., None, None]
    weighted = centred * outer.sqrt()
    first, second = unordered_pairs(kernel.shape[1])
    products = (weighted[:, first] * weighted[:, second]).sum((-1, -2))
    norms = weighted.square().sum((-1, -2)).clamp_min(1e-20).sqrt()
    return (products / (norms[:, first] * norms[:, second])).mean(1)
