"""What the objective is computed on, and what it returns.

Legend: B pairs on this rank, K paths, M hard negatives per pair, D dimension of a path, F of the fused embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PairEmbeddings:
    """Unit embeddings of one rank's pairs and hard negatives, of one kind: those per path or the fused ones.

    Attributes:
        query: [B, K, D] per path, [B, F] fused.
        target: as ``query``.
        negatives: [B, M, K, D] per path, [B, M, F] fused.
    """

    query: Tensor
    target: Tensor
    negatives: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "PairEmbeddings":
        return PairEmbeddings(function(self.query), function(self.target), function(self.negatives))


@dataclass(frozen=True)
class PairIdentities:
    """What the targets and hard negatives of one rank's pairs are.

    Attributes:
        target_ids: int64 [B]; equal ones are the same thing.
        negative_ids: int64 [B, M], comparable with ``target_ids``.
        valid: bool [B]; a pair that is not counts nowhere, whatever its embeddings hold.
        negative_valid: bool [B, M], the same for hard negatives.
    """

    target_ids: Tensor
    negative_ids: Tensor
    valid: Tensor
    negative_valid: Tensor


@dataclass(frozen=True)
class Terms:
    """Scalars of this rank: what is learned by contrast, and the weighted diversity term, None without one."""

    contrast: Tensor
    diversity: Tensor | None

    @property
    def loss(self) -> Tensor:
        return self.contrast if self.diversity is None else self.contrast + self.diversity


def keep_valid(embeddings: Tensor, valid: Tensor) -> Tensor:
    """Zero if not valid: a filler's values, NaN included, then reach neither a product nor a gradient.

    Args:
        embeddings: [*, ...].
        valid: bool [*].
    """
    return embeddings.masked_fill(~valid.reshape(*valid.shape, *(1 for _ in embeddings.shape[valid.dim() :])), 0)
