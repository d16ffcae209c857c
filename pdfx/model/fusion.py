"""From packed hidden states to unit embeddings, and from K of them to one."""

import torch
from torch import nn
from torch.nn import functional

from .packing import Packing

MINIMUM_NORM = 1e-6


def pool(states: torch.Tensor, packing: Packing, pooling: str) -> torch.Tensor:
    """Unit embeddings ``[B, K, D]`` in float32 (float64 stays) from the final normed states ``[1, K*N, D]``.

    ``last`` takes each sequence's last real token, whatever side the padding was on; ``mean`` averages its tokens.
    """
    states = states[0].unflatten(0, (len(packing.paths), packing.tokens))
    if pooling == "last":
        pooled = states.index_select(1, packing.ends)
    else:
        lengths = packing.ends - packing.starts + 1
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=states.device), lengths)
        states = at_least_float32(states)
        sums = states.new_zeros(len(packing.paths), len(lengths), states.shape[-1]).index_add(1, owner, states)
        pooled = sums / lengths[:, None]
    return unit(pooled.transpose(0, 1))


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or as it is where it is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def unit(tensor: torch.Tensor) -> torch.Tensor:
    """L2-normalised along the last dimension, in float32 or wider."""
    return functional.normalize(at_least_float32(tensor), dim=-1, eps=MINIMUM_NORM)


class Fusion(nn.Module):
    """One embedding ``[B, F]`` from K unit ones ``[B, K, D]``: their mean, a learned softmax-weighted sum, or their concatenation (F = K*D), normalised."""

    def __init__(self, kind: str, paths: int):
        super().__init__()
        if kind not in ("mean", "softmax", "concat"):
            raise ValueError(f"fusion must be mean, softmax or concat, not '{kind}'.")
        self.kind = kind
        if kind == "softmax":
            self.logits = nn.Parameter(torch.zeros(paths))

    def forward(self, embeddings: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
        """Fuse the embeddings of the chosen ``paths`` (int64 ``[K]``); with one path every kind returns that path."""
        if self.kind == "concat":
            return unit(embeddings.flatten(1))
        if self.kind == "softmax":
            weights = self.logits.index_select(0, paths).to(embeddings.dtype).softmax(0)
            return unit((weights[:, None] * embeddings).sum(1))
        return unit(embeddings.mean(1))
