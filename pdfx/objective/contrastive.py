"""Exact InfoNCE against a pool of candidates, a few rows at a time: memory beside the embeddings does not grow with the
batch.

The gradients are made together with the value, while a block's scores are there, so that no score is computed twice.
Each is linear in the weights of the rows, which are known beforehand; the idea is that of fused losses on large
vocabularies (Hsu et al., Liger Kernel, arXiv 2410.10989). Legend: B rows on this rank, C candidates of all ranks, K
paths, D dimension.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_SCORES = 2**21
"""Scores that are worked on at once: on the CPU every pass over them should find them in the cache; elsewhere few large
kernels win."""

DEVICE_SCORES = 2**26

SMALLEST_BLOCK = 64
"""Rows of a block however many candidates there are; with fewer, reading the candidates would take longer than
computing with them."""


@dataclass(frozen=True)
class Exclusion:
    """Which of the C candidates a row is contrasted with: the valid ones that are not its own positive and do not share
    its identity.

    ``positive_start``: the positive of row i is candidate ``positive_start + i``. ``valid``: bool [C]. ``row_ids``
    int64 [B] and ``candidate_ids`` int64 [C]: a candidate with a row's id is not a negative of that row; both None if
    identities are not compared.
    """

    positive_start: int
    valid: Tensor
    row_ids: Tensor | None = None
    candidate_ids: Tensor | None = None

    @cached_property
    def invalid(self) -> Tensor:
        """int64 [i]: candidates that count for no row."""
        return (~self.valid).nonzero().squeeze(1)

    @cached_property
    def shared(self) -> Tensor:
        """int64 [s]: candidates that share the identity of a row which is not their own. Usually few, so that few
        columns are compared."""
        if self.row_ids is None or self.candidate_ids is None:
            return self.invalid[:0]
        ordered = self.row_ids.sort().values
        rows = torch.searchsorted(ordered, self.candidate_ids, right=True) - torch.searchsorted(
            ordered, self.candidate_ids
        )
        own = slice(self.positive_start, self.positive_start + len(self.row_ids))
        rows[own] -= (self.candidate_ids[own] == self.row_ids).long()
        return rows.nonzero().squeeze(1)

    def apply(self, scores: Tensor, block: slice) -> None:
        """Set the scores [rows of the block, C] of what is not a negative of its row to -inf, in place; the own
        positive is scored apart."""
        scores.diagonal(self.positive_start + block.start).fill_(-torch.inf)
        scores.index_fill_(1, self.invalid, -torch.inf)
        if self.row_ids is not None and self.candidate_ids is not None and len(self.shared):
            same = self.row_ids[block, None] == self.candidate_ids[self.shared]
            scores.index_copy_(1, self.shared, scores.index_select(1, self.shared).masked_fill_(same, -torch.inf))

    def mask(self, block: slice, scores: Tensor) -> Tensor:
        """Like ``scores`` [rows of the block, C]: -inf at what a row is not contrasted with; 0 elsewhere, at its own
        positive too."""
        mask = torch.zeros_like(scores)
        self.apply(mask, block)
        mask.diagonal(self.positive_start + block.start).zero_()
        return mask


def info_nce(
    rows: Tensor,
    candidates: Tensor,
    log_temperature: Tensor,
    exclusion: Exclusion,
    weights: Tensor,
    block_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted sums of ``-log softmax`` of each row's positive among its candidates, path by path (van den Oord et al.,
    arXiv 1807.03748).

    Args:
        rows: [B, K, D], scored by dot products with
        candidates: [C, K, D] of the same dtype, float32 or float64.
        log_temperature: scalar; scores are divided by its exponential.
        exclusion: what is not a negative.
        weights: [B], constants; 0 for a row that does not count.
        block_rows: rows scored at once, chosen by their bytes if None; changes memory, not the result.

    Returns:
        sums [K], differentiable in the first three arguments, and hits bool [B, K]: the positive beats every negative
        strictly.
    """
    block_rows = block_rows or rows_at_once(candidates, 1)
    differentiable = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (rows, candidates, log_temperature)
    )
    return _InfoNCE.apply(
        rows, candidates, log_temperature.to(rows.dtype), exclusion, weights.to(rows.dtype), block_rows, differentiable
    )


def rows_at_once(candidates: Tensor, scores: int) -> int:
    """Rows of a block, if so many scores of each row with each of the candidates [C, ...] exist at a time."""
    budget = CPU_SCORES if candidates.device.type == "cpu" else DEVICE_SCORES
    return max(SMALLEST_BLOCK, budget // (len(candidates) * scores))


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        rows: Tensor,
        candidates: Tensor,
        log_temperature: Tensor,
        exclusion: Exclusion,
        weights: Tensor,
        block_rows: int,
        differentiable: bool,
    ):
        count, paths, dimension = rows.shape
        sums, hits = rows.new_zeros(paths), torch.empty(rows.shape[:2], dtype=torch.bool, device=rows.device)
        gradients = None
        if differentiable:
            gradients = [
                rows.new_empty(paths, count, dimension),
                rows.new_zeros(paths, len(candidates), dimension),
                torch.zeros_like(sums),
            ]
        buffer = rows.new_empty(min(block_rows, len(rows)) * len(candidates))
        with torch.autocast(rows.device.type, enabled=False):
            for path in range(paths):
                one = rows[:, path], candidates[:, path], torch.exp(-log_temperature), exclusion, weights
                sums[path] = _one_path(
                    *one, hits[:, path], gradients and [gradient[path] for gradient in gradients], buffer, block_rows
                )
        if gradients:
            ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(hits)
        return sums, hits

    @staticmethod
    @once_differentiable
    def backward(ctx, sums_gradient: Tensor, _):
        rows_gradient, candidates_gradient, temperature_gradient = ctx.saved_tensors
        each = sums_gradient[:, None, None]
        none = (None,) * 4
        return (
            (rows_gradient * each).transpose(0, 1),
            (candidates_gradient * each).transpose(0, 1),
            (temperature_gradient * sums_gradient).sum(),
            *none,
        )


def _one_path(
    rows: Tensor,
    candidates: Tensor,
    inverse: Tensor,
    exclusion: Exclusion,
    weights: Tensor,
    hits: Tensor,
    gradients: list[Tensor] | None,
    buffer: Tensor,
    block_rows: int,
) -> Tensor:
    """The weighted sum of one path's losses; fills ``hits`` [B] and the ``gradients`` of rows [B, D], candidates [C, D]
    and log-temperature []."""
    total = weights.new_zeros(())
    for start in range(0, len(rows), block_rows):
        block = slice(start, min(start + block_rows, len(rows)))
        own = slice(exclusion.positive_start + block.start, exclusion.positive_start + block.stop)
        scaled = rows[block] * inverse
        scores = torch.mm(scaled, candidates.T, out=buffer[: len(scaled) * len(candidates)].view(len(scaled), -1))
        exclusion.apply(scores, block)
        positive = (scaled * candidates[own]).sum(-1)
        hardest = scores.amax(-1)
        hits[block] = positive > hardest
        # The positive takes part in the maximum, which so is finite even for a row without any negative.
        maximum = torch.maximum(positive, hardest)
        exponentials = scores.sub_(maximum[:, None]).exp_()
        partition = exponentials.sum(-1) + torch.exp(positive - maximum)
        losses = maximum - positive + partition.log()
        total += losses @ weights[block]
        if gradients is None:
            continue
        rows_gradient, candidates_gradient, temperature_gradient = gradients
        # d loss / d score is p at a negative and p - 1 at the positive; expm1 keeps the digits of p - 1 if the loss
        # is small.
        push = (weights[block] * inverse / partition)[:, None]
        pull = (weights[block] * inverse * torch.expm1(-losses))[:, None]
        rows_gradient[block] = torch.mm(exponentials, candidates).mul_(push).addcmul_(pull, candidates[own])
        candidates_gradient.addmm_(exponentials.T, rows[block] * push)
        candidates_gradient[own].addcmul_(pull, rows[block])
        # Every score is a row's product over the temperature, so sum(d loss / d score * score) = sum(row * d loss / d
        # row).
        temperature_gradient -= (rows[block] * rows_gradient[block]).sum()
    return total
