"""How alike the K embeddings of one input are. Legend: B batch, K paths, D dimension; K is 2 or more."""

import torch
from torch import Tensor


def pair_cosines(embeddings: Tensor) -> Tensor:
    """[B, K(K-1)/2]: the products e_i . e_j of the unordered pairs of paths of unit ``embeddings`` [B, K, D]."""
    paths = embeddings.shape[1]
    first, second = torch.triu_indices(paths, paths, offset=1, device=embeddings.device)
    return torch.bmm(embeddings, embeddings.transpose(1, 2))[:, first, second]


def orthogonality_penalty(embeddings: Tensor) -> Tensor:
    """[B]: 2 / (K(K-1)) * sum over i < j of (e_i . e_j)^2, for unit ``embeddings`` [B, K, D]; 0 if the paths are
    orthogonal, 1 if they agree."""
    return pair_cosines(embeddings).square().mean(1)
