"""Losses that need all paths of an item at once: late interaction, and the fused score as the teacher of each path.

Scores exist for one block of rows at a time. The backward pass computes them again, which is what activation
checkpointing does, so that memory beside the embeddings does not grow with the batch. Legend: B rows on this rank, C
candidates of all ranks, K paths, D dimension, F of the fused embedding.
"""

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pdfx.objective.contrastive import Exclusion, rows_at_once


def maxsim(rows: Tensor, candidates: Tensor) -> Tensor:
    """Scores [B, C] of rows [B, K, D] and candidates [C, K, D]: ``sum_k max_l q_k . t_l / K``.

    It is the late interaction of ColBERT (Khattab and Zaharia, arXiv 2004.12832) with paths in the place of tokens.
    """
    best = (reduce(torch.maximum, (path @ other.T for other in candidates.unbind(1))) for path in rows.unbind(1))
    return reduce(torch.add, best) / rows.shape[1]


def maxsim_info_nce(
    rows: Tensor,
    candidates: Tensor,
    log_temperature: Tensor,
    exclusion: Exclusion,
    weights: Tensor,
    block_rows: int | None = None,
) -> Tensor:
    """The weighted sum of ``-log softmax`` of each row's positive among its candidates, scored by MaxSim (contrasted as
    by Xiao et al., MetaEmbed, arXiv 2509.18095).

    Args:
        rows: [B, K, D].
        candidates: [C, K, D] of the same dtype.
        log_temperature: scalar; scores are divided by its exponential.
        exclusion: what is not a negative.
        weights: [B], constants; 0 for a row that does not count.
        block_rows: rows scored at once, chosen by their bytes if None; changes memory, not the result.

    Returns:
        Scalar, differentiable in the first three arguments.
    """

    def loss(block: slice, rows: Tensor, candidates: Tensor, log_temperature: Tensor) -> Tensor:
        scores = maxsim(rows, candidates) / log_temperature.exp()
        chosen = (
            (scores + exclusion.mask(block, scores)).log_softmax(-1).diagonal(exclusion.positive_start + block.start)
        )
        return -chosen @ weights[block].to(rows.dtype)

    held = 2 * rows.shape[1] ** 2
    return _sum_over_blocks(loss, rows, candidates, log_temperature, block_rows or rows_at_once(candidates, held))


def distillation(
    rows: Tensor,
    candidates: Tensor,
    fused_rows: Tensor,
    fused_candidates: Tensor,
    log_temperature: Tensor,
    exclusion: Exclusion,
    weights: Tensor,
    block_rows: int | None = None,
) -> Tensor:
    """The mean over paths of the weighted sum of cross-entropies from a row's distribution over its candidates by the
    fused score, a constant, to that by the path's (Hinton et al., arXiv 1503.02531, without a temperature of its own).

    Args:
        rows: [B, K, D].
        candidates: [C, K, D].
        fused_rows: [B, 1, F].
        fused_candidates: [C, 1, F].
        log_temperature: scalar; the scores of both are divided by its exponential.
        exclusion: what is not a negative.
        weights: [B], constants; 0 for a row that does not count.
        block_rows: rows scored at once, chosen by their bytes if None; changes memory, not the result.

    Returns:
        Scalar, differentiable in ``rows``, ``candidates`` and, by the paths' scores alone, ``log_temperature``.
    """
    fused_rows, fused_candidates = fused_rows.detach(), fused_candidates.detach()

    def loss(block: slice, rows: Tensor, candidates: Tensor, log_temperature: Tensor) -> Tensor:
        temperature = log_temperature.exp()
        scores = fused_rows[block, 0] @ fused_candidates[:, 0].T / temperature.detach()
        mask = exclusion.mask(block, scores)
        teacher, excluded = (scores + mask).softmax(-1), mask < 0
        each = []
        for path, others in zip(rows.unbind(1), candidates.unbind(1), strict=True):
            learner = (path @ others.T / temperature + mask).log_softmax(-1)
            # The teacher is 0 where the learner is -inf, and their product is meant to be 0.
            each.append(-(teacher * learner.masked_fill(excluded, 0)).sum(-1))
        return torch.stack(each).mean(0) @ weights[block].to(rows.dtype)

    held = 3 * rows.shape[1]
    return _sum_over_blocks(loss, rows, candidates, log_temperature, block_rows or rows_at_once(candidates, held))


def _sum_over_blocks(
    loss: Callable[..., Tensor], rows: Tensor, candidates: Tensor, log_temperature: Tensor, block_rows: int
) -> Tensor:
    total = rows.new_zeros(())
    for start in range(0, len(rows), block_rows):
        block = slice(start, start + block_rows)
        inputs = rows[block], candidates, log_temperature.to(rows.dtype)
        total = total + checkpoint(loss, block, *inputs, use_reentrant=False, preserve_rng_state=False)
    return total
