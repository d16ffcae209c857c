"""Rows compared with a baseline: paired over seeds and items, with errors and a correction for many comparisons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pdfx.study.plan import StudySection
from pdfx.study.records import FUSED, Record

SINGLE = "single"
"""The mean over single paths, each used alone."""
LEVEL = 0.05


@dataclass
class Difference:
    """A row less a baseline on one test set.

    Attributes:
        mean: over seeds and items.
        error: its standard error.
        p: two-sided, of Student's distribution, for all comparisons with the baseline together (Holm, 1979).
        seeds: that both have.
    """

    mean: float
    error: float
    p: float
    seeds: int

    @property
    def significant(self) -> bool:
        return self.p < LEVEL


def values(record: Record, test: str, score: str, metric: str) -> np.ndarray:
    """The metric of every item of a test set, float64 [items]: the mean over its queries, then over both directions."""
    sides = []
    names = [name for name in record.ranks if name.startswith(f"{test}/") and name.endswith("/items")]
    for direction in (name.removesuffix("/items") for name in names):
        paths = [name for name in record.ranks if name.startswith(f"{direction}/path_")]
        chosen = paths if score == SINGLE else [f"{direction}/{score}"]
        own = np.mean([of_ranks(record.ranks[name], metric) for name in chosen], axis=0)
        items = record.ranks[f"{direction}/items"]
        sides.append(np.bincount(items, own) / np.bincount(items))
    return np.mean(sides, axis=0)


def of_ranks(ranks: np.ndarray, metric: str) -> np.ndarray:
    """``mrr`` or ``recall@k`` of each query, float64 [n], by the rank of its first right answer; 0 means none."""
    ranks = ranks.astype(np.float64)
    if metric == "mrr":
        return np.divide(1.0, ranks, out=np.zeros_like(ranks), where=ranks > 0)
    return ((ranks > 0) & (ranks <= int(metric.partition("@")[2]))).astype(np.float64)


def tests_of(records: list[Record]) -> list[str]:
    """The test sets in order of their names."""
    return sorted({name.partition("/")[0] for record in records for name in record.ranks})


def differences(
    study: StudySection, rows: dict[str, dict[int, Record]], baseline: str, score: str = FUSED
) -> dict[tuple[str, str], Difference]:
    """By (row, test set), for all rows that share seeds with the baseline.

    Args:
        rows: records by row and seed.
    """
    found = {}
    for row, records in rows.items():
        seeds = [seed for seed in study.seeds if seed in records and seed in rows[baseline]]
        if row == baseline or not seeds:
            continue
        for test in tests_of(list(records.values())):
            paired = np.stack(
                [
                    values(records[seed], test, score, study.metric)
                    - values(rows[baseline][seed], test, FUSED, study.metric)
                    for seed in seeds
                ]
            )
            mean, error = float(paired.mean()), standard_error(paired, study.bootstraps)
            p = two_sided(mean, error, degrees_of_freedom(paired))
            found[row, test] = Difference(mean, error, p, len(seeds))
    holm(list(found.values()))
    return found


def standard_error(paired: np.ndarray, bootstraps: int, seed: int = 0) -> float:
    """Of the mean of [seeds, items]: seeds and items are drawn again with replacement, crossed (Owen, 2007).

    Few seeds, drawn with replacement, vary by ``sqrt((S - 1) / S)`` too little, which the result makes up for; with one
    seed it holds the items' share alone.
    """
    seeds, items = paired.shape
    generator = np.random.default_rng(seed)
    centre = paired.mean()
    # The seeds are spread about the mean of all, wider if they are few.
    own = paired.mean(1, keepdims=True)
    widened = paired + (own - centre) * (np.sqrt(seeds / (seeds - 1)) - 1 if seeds > 1 else 0)
    means = np.empty(bootstraps)
    for start in range(0, bootstraps, 1000):
        size = min(1000, bootstraps - start)
        by_seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size)
        by_item = generator.multinomial(items, np.full(items, 1 / items), size)
        means[start : start + size] = np.einsum("bs,si,bi->b", by_seed, widened, by_item, optimize=True)
    return float(means.std() / paired.size)


def degrees_of_freedom(paired: np.ndarray) -> float:
    """Of the standard error of the mean of [seeds, items], whose two parts have S - 1 and C - 1 (Satterthwaite, 1946).

    Few seeds that differ much give few degrees, so that a difference has to be larger.
    """
    parts = [
        (axis.var(ddof=1) / len(axis), len(axis) - 1) for axis in (paired.mean(1), paired.mean(0)) if len(axis) > 1
    ]
    total, spread = sum(part for part, _ in parts), sum(part**2 / count for part, count in parts)
    return total**2 / spread if spread > 0 else np.inf


def two_sided(mean: float, error: float, degrees: float) -> float:
    """The p value of a mean with a standard error: the probability that Student's t is further from 0 than their ratio.

    With t = sqrt(degrees) tan(a), its density is proportional to ``cos(a) ** (degrees - 1)``.
    """
    if error == 0:
        return float(mean == 0)
    # Beyond a million it is the normal distribution.
    degrees = min(degrees, 1e6)
    reached = np.arctan(abs(mean) / error / np.sqrt(degrees))
    whole, inner = (np.linspace(0, end, 20_001) for end in (np.pi / 2, reached))
    density = [np.trapezoid(np.cos(angles) ** (degrees - 1), angles) for angles in (whole, inner)]
    return float(max(0.0, 1 - density[1] / density[0]))


def holm(found: list[Difference]) -> None:
    """Correct the p values in place for how many there are (Holm, 1979)."""
    largest = 0.0
    for place, difference in enumerate(sorted(found, key=lambda one: one.p)):
        largest = max(largest, min(1.0, difference.p * (len(found) - place)))
        difference.p = largest
