"""From packed hidden states to unit embeddings, from K of them to one, and the output that holds both."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers.utils import ModelOutput

from .packing import Packing

MINIMUM_NORM = 1e-6


@dataclass
class EmbedderOutput(ModelOutput):
    """Embeddings of n inputs.

    Attributes:
        paths: float32 ``[n, K, D]``, unit rows.
        fused: float32 ``[n, F]``, unit rows.
        fusion_logits: float32, what a learned fusion weighs all paths with: ``[K]``, or ``[K, D]`` if it is routed,
            whose products with the paths are an input's logits; None if the weights are not learned.
    """

    paths: torch.Tensor | None = None
    fused: torch.Tensor | None = None
    fusion_logits: torch.Tensor | None = None


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
    """The tensor in float32, or as it is if it is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def unit(tensor: torch.Tensor) -> torch.Tensor:
    """L2-normalised along the last dimension, in float32 or wider."""
    return functional.normalize(at_least_float32(tensor), dim=-1, eps=MINIMUM_NORM)


class Fusion(nn.Module):
    """``[B, F]`` from unit ``[B, K, D]``: mean, learned weighted sum, or concatenation (F = K*D), normalised.

    Args:
        kind: ``mean``; ``softmax``, the same weights for every input; ``routed``, weights of each input by a linear map
            of its paths' embeddings (a gate as of Shazeer et al., arXiv 1701.06538, over all paths); or ``concat``.
            Learned weights start equal.
        paths: K.
        dimension: D.
    """

    def __init__(self, kind: str, paths: int, dimension: int):
        super().__init__()
        if kind not in ("mean", "softmax", "routed", "concat"):
            raise ValueError(f"fusion must be mean, softmax, routed or concat, not '{kind}'.")
        self.kind = kind
        if kind in ("softmax", "routed"):
            self.logits = nn.Parameter(torch.zeros((paths,) if kind == "softmax" else (paths, dimension)))

    def forward(
        self, embeddings: torch.Tensor, paths: torch.Tensor, wanted: bool = True
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Fuse the embeddings of the chosen ``paths`` (int64 ``[k]``); with one path every kind returns that path.

        Returns:
            ``[B, F]``, None if not ``wanted``; and the logits of all paths, ``[K]`` or ``[K, D]`` if ``routed``, with
            which ``fuse`` does the same elsewhere, None if the weights are not learned.
        """
        # A copy: under ZeRO-3 the parameter itself is released when this returns.
        logits = at_least_float32(self.logits.clone()) if self.kind in ("softmax", "routed") else None
        chosen = None if logits is None else logits.index_select(0, paths)
        return fuse(self.kind, embeddings, chosen) if wanted else None, logits


def fuse(kind: str, embeddings: torch.Tensor, logits: torch.Tensor | None = None) -> torch.Tensor:
    """``[B, F]`` from unit ``[B, k, D]``; ``logits`` weigh them: ``[k]`` if ``kind`` is ``softmax``, ``[k, D]`` if it
    is ``routed``, where a path's logit is their product with its embedding."""
    if kind == "concat":
        return unit(embeddings.flatten(1))
    if kind in ("softmax", "routed"):
        if logits is None:
            raise ValueError(f"The fusion '{kind}' needs its logits.")
        logits = logits.to(embeddings.dtype)
        weights = (logits if kind == "softmax" else (embeddings * logits).sum(-1)).softmax(-1)
        return unit((weights[..., None] * embeddings).sum(1))
    return unit(embeddings.mean(1))


def join_outputs(
    outputs: list[EmbedderOutput], truncate_dim: int | None = None, fusion: str = "mean"
) -> EmbedderOutput:
    """Outputs of consecutive batches as one, on the CPU, optionally cut to leading dimensions and normalised again."""
    paths, fused = (torch.cat([output[name].cpu() for output in outputs]) for name in ("paths", "fused"))
    if truncate_dim is not None:
        paths = unit(paths[..., :truncate_dim])
        # The leading dimensions of a concatenation would be the first path's alone.
        fused = fuse(fusion, paths) if fusion == "concat" else unit(fused[..., :truncate_dim])
    return EmbedderOutput(paths=paths, fused=fused)
