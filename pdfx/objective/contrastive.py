"""Exact InfoNCE against a pool of candidates, in tiles of the pool: O(B x tile) memory in both passes.

The running log-sum-exp over tiles, with scores recomputed in the backward pass, follows Milakov and Gimelshein (arXiv 1805.02867) and its use for
contrastive losses in Cheng et al. (Inf-CL, arXiv 2410.17243). Legend: B rows on this rank, C candidates of all ranks, K paths, D dimension.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 1024


@dataclass(frozen=True)
class Exclusion:
    """Which of the C candidates a row is contrasted with: the valid ones that are not its own positive and do not share its identity.

    ``positive_start``: the positive of row i is candidate ``positive_start + i``. ``valid``: bool [C]. ``row_ids`` int64 [B] and
    ``candidate_ids`` int64 [C]: a candidate with a row's id is no negative of that row; both None where identities are not compared.
    """

    positive_start: int
    valid: Tensor
    row_ids: Tensor | None = None
    candidate_ids: Tensor | None = None

    def mask(self, start: int, stop: int, rows: int) -> Tensor:
        """bool [B, stop - start]: True for candidates that are no negatives of the row (the own positive is scored apart)."""
        candidates = torch.arange(start, stop, device=self.valid.device)
        positives = torch.arange(self.positive_start, self.positive_start + rows, device=self.valid.device)
        excluded = (candidates == positives[:, None]) | ~self.valid[start:stop]
        if self.row_ids is not None:
            excluded |= self.candidate_ids[start:stop] == self.row_ids[:, None]
        return excluded


def info_nce(rows: Tensor, candidates: Tensor, log_temperature: Tensor, exclusion: Exclusion, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """``-log softmax`` of each row's positive among its candidates, path by path (van den Oord et al., arXiv 1807.03748).

    Args:
        rows: [B, K, D], scored by dot products with
        candidates: [C, K, D] of the same dtype, float32 or float64.
        log_temperature: scalar; scores are divided by its exponential.
        exclusion: what is no negative. The caller leaves out rows that do not count.
        tile: candidates scored at once; changes memory, not the result.

    Returns:
        losses [B, K], differentiable in the first three arguments, and hits bool [B, K]: the positive beats every negative strictly.
    """
    return _InfoNCE.apply(rows, candidates, log_temperature.to(rows.dtype), exclusion, tile)


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, candidates: Tensor, log_temperature: Tensor, exclusion: Exclusion, tile: int) -> tuple[Tensor, Tensor]:
        positives = candidates[exclusion.positive_start : exclusion.positive_start + len(rows)]
        positive_scores = (rows * positives).sum(-1).T * torch.exp(-log_temperature)
        # The positive opens the running sum, so the maximum is finite even for a row without any negative.
        maximum, total = positive_scores, torch.ones_like(positive_scores)
        hardest = torch.full_like(positive_scores, -torch.inf)
        for _, scores in _tiles(rows, candidates, log_temperature, exclusion, tile):
            tile_maximum = scores.amax(-1)
            hardest = torch.maximum(hardest, tile_maximum)
            previous, maximum = maximum, torch.maximum(maximum, tile_maximum)
            total = total * torch.exp(previous - maximum) + scores.sub_(maximum[..., None]).exp_().sum(-1)
        log_sum = maximum + total.log()
        losses = log_sum - positive_scores
        hits = positive_scores > hardest
        ctx.save_for_backward(rows, candidates, log_temperature, log_sum, losses)
        ctx.exclusion, ctx.tile = exclusion, tile
        ctx.mark_non_differentiable(hits)
        return losses.T, hits.T

    @staticmethod
    @once_differentiable
    def backward(ctx, losses_gradient: Tensor, _):
        rows, candidates, log_temperature, log_sum, losses = ctx.saved_tensors
        scale = losses_gradient.T * torch.exp(-log_temperature)
        # d loss / d score is p - 1 at the positive and p elsewhere; expm1 keeps the digits of p - 1 where the loss is small.
        pull = (torch.expm1(-losses) * scale).T[..., None]
        own = slice(ctx.exclusion.positive_start, ctx.exclusion.positive_start + len(rows))
        rows_gradient = (pull * candidates[own]).transpose(0, 1).contiguous()
        candidates_gradient = torch.zeros_like(candidates, memory_format=torch.contiguous_format)
        candidates_gradient[own] = pull * rows
        with torch.autocast(rows.device.type, enabled=False):
            for part, scores in _tiles(rows, candidates, log_temperature, ctx.exclusion, ctx.tile):
                weights = scores.sub_(log_sum[..., None]).exp_().mul_(scale[..., None])
                rows_gradient.baddbmm_(weights, candidates[part].transpose(0, 1))
                candidates_gradient[part] += torch.bmm(weights.transpose(1, 2), rows.transpose(0, 1)).transpose(0, 1)
        rows_gradient = rows_gradient.transpose(0, 1)
        # Every score is a row's product over the temperature, so sum(d loss / d score * score) = sum(row * d loss / d row).
        return rows_gradient, candidates_gradient, -(rows * rows_gradient).sum(), None, None


def _tiles(rows: Tensor, candidates: Tensor, log_temperature: Tensor, exclusion: Exclusion, tile: int) -> Iterator[tuple[slice, Tensor]]:
    """The scores [K, B, tile] of each part of the candidates, -inf where excluded."""
    scaled = (rows * torch.exp(-log_temperature)).transpose(0, 1)
    for start in range(0, len(candidates), tile):
        part = slice(start, min(start + tile, len(candidates)))
        with torch.autocast(rows.device.type, enabled=False):
            scores = torch.bmm(scaled, candidates[part].permute(1, 2, 0))
        yield part, scores.masked_fill_(exclusion.mask(part.start, part.stop, len(rows)), -torch.inf)
