"""Retrieval metrics written down as plainly as possible."""

import math

import numpy as np


def plain_metrics(scores: np.ndarray, relevant: np.ndarray, recall_at: list[int]) -> dict[str, list[float]]:
    """Builds every query's ranked list one candidate at a time: by score, and at equal scores the irrelevant ones
    first."""
    result = {name: [] for name in [*(f"recall@{k}" for k in recall_at), "mrr", "ndcg@10"]}
    for row, flags in zip(scores, relevant, strict=True):
        order = sorted(range(len(row)), key=lambda j: (-row[j], flags[j]))
        hits = [position for position, j in enumerate(order, start=1) if flags[j]]
        for k in recall_at:
            result[f"recall@{k}"].append(float(bool(hits) and hits[0] <= k))
        result["mrr"].append(1 / hits[0] if hits else 0.0)
        ideal = sum(1 / math.log2(position + 1) for position in range(1, min(10, len(hits)) + 1))
        result["ndcg@10"].append(
            sum(1 / math.log2(position + 1) for position in hits if position <= 10) / ideal if hits else 0.0
        )
    return result
