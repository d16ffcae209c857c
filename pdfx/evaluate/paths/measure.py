"""All figures about the paths of a model, from embedded items and the model itself.

Legend: n items, K paths, L layers, N tokens of an item.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pdfx.evaluate.embedding import EmbeddedItems
from pdfx.evaluate.paths.asking import OUTCOMES, Asking, correlations, of_pairs, overlaps, standard_error
from pdfx.evaluate.paths.attention import ItemAttention
from pdfx.evaluate.paths.likeness import Likeness, likenesses
from pdfx.evaluate.paths.oracle import TUNED_ON, Oracle, noisy_copies, oracles, phi_of_copies
from pdfx.evaluate.paths.spectrum import Ranks, effective_ranks
from pdfx.evaluate.retrieval import DIRECTIONS, directions_of


@dataclass(frozen=True)
class Agreement:
    """Something that pairs of paths have in common, over queries.

    Attributes:
        matrix: [K, K].
        mean: over pairs of different paths; and its standard error, by bootstrap over queries.
        copies: the same mean of the noisy copies.
    """

    matrix: list[list[float]]
    mean: float
    error: float
    copies: float


@dataclass(frozen=True)
class DirectionFigures:
    """What paths find.

    Attributes:
        queries: how many were asked.
        nearest: how many candidates count as neighbours: 10, or half of them if there are fewer than 20.
        neighbours: share of a query's neighbours that two paths have in common.
        chance: that share for random orders.
        misses: phi, correlation of whether the first candidate is wrong.
        ranks: correlation of reciprocal ranks.
        oracle: by the name of the outcome.
        noise: norm of the noise on the copies' unit embeddings.
    """

    queries: int
    nearest: int
    neighbours: Agreement
    chance: float
    misses: Agreement
    ranks: Agreement
    oracle: dict[str, Oracle]
    noise: float


@dataclass(frozen=True)
class Mass:
    """Of attention, for each path: means over items with their standard errors, and what even attention gives."""

    paths: list[float]
    errors: list[float]
    even: float


@dataclass(frozen=True)
class AttentionFigures:
    """Attention of one side's items, mean over heads.

    Attributes:
        items: how many were looked at.
        first_layer: number of the first of the L layers.
        prefix_by_layer: [K, L], mass on the prefix, mean over tokens.
        even_prefix: the same of even attention.
        embedding_by_layer: [K, L], of the embedding's tokens alone.
        prefix: of the embedding's tokens, mean over layers.
        pictures: mass on pictures' tokens as a share of the mass on all tokens, of the items that have pictures; None
            if none has.
        apart: total variation, 0 to 1, between what a path and another one give to the tokens, mean over the others;
            None for one path.
    """

    items: int
    first_layer: int
    prefix_by_layer: list[list[float]]
    even_prefix: float
    embedding_by_layer: list[list[float]]
    prefix: Mass
    pictures: Mass | None
    apart: Mass | None


@dataclass(frozen=True)
class PathFigures:
    """Everything that is measured.

    Attributes:
        paths: K.
        items: how many each side has.
        likeness: by side, then ``cosine``, ``cka`` and ``r2``; empty for one path.
        rank: by side.
        directions: by direction; empty for one path.
        attention: by side.
    """

    paths: int
    items: dict[str, int]
    likeness: dict[str, dict[str, Likeness]]
    rank: dict[str, Ranks]
    directions: dict[str, DirectionFigures]
    attention: dict[str, AttentionFigures]

    def plain(self) -> dict[str, Any]:
        """Values for JSON; what is not defined is None."""
        return _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def measure(
    queries: EmbeddedItems, targets: EmbeddedItems, attention: dict[str, list[tuple[ItemAttention, Tensor]]]
) -> PathFigures:
    """All figures. ``attention`` has by side the items' attention, each with which of its tokens stand for pictures
    (bool [N])."""
    sides = {"query": queries, "target": targets}
    count = queries.paths.shape[1]
    several = count > 1
    asked = {DIRECTIONS[0]: (queries, targets), DIRECTIONS[1]: (targets, queries)}
    return PathFigures(
        paths=count,
        items={name: len(side.ids) for name, side in sides.items()},
        likeness={name: likenesses(side.paths) for name, side in sides.items()} if several else {},
        rank={name: effective_ranks(side.paths) for name, side in sides.items()},
        directions={name: of_direction(*asked[name]) for name in directions_of(queries, targets)} if several else {},
        attention={name: of_attention(items) for name, items in attention.items()},
    )


def of_direction(asking: EmbeddedItems, answering: EmbeddedItems) -> DirectionFigures:
    asked = Asking.of(asking, answering)
    paths = list(zip(asked.queries[0].unbind(1), asked.candidates[0].unbind(1), strict=True))
    shared = overlaps([asked.nearest(*path) for path in paths])
    outcomes = torch.stack([asked.outcomes(*path) for path in paths], dim=1)
    overlap = shared.mean(0)
    mean = of_pairs(overlap)
    copies = noisy_copies(asked, Asking.of(asking, answering, TUNED_ON), len(paths), float(mean))
    agreements = []
    for number in range(len(OUTCOMES)):
        matrix, average, error = correlations(outcomes[..., number])
        agreements.append(Agreement(matrix.tolist(), average, error, phi_of_copies(copies.outcomes, number)))
    sizes = asked.sizes.double()
    return DirectionFigures(
        queries=len(asked.rows),
        nearest=asked.nearest_count,
        neighbours=Agreement(overlap.tolist(), float(mean), standard_error(of_pairs(shared)), copies.overlap),
        chance=float((sizes.clamp_max(asked.nearest_count) / sizes).mean()),
        misses=agreements[0],
        ranks=agreements[1],
        oracle=oracles(outcomes, asked.outcomes(asked.queries[1], asked.candidates[1]), copies.outcomes),
        noise=copies.strength,
    )


def of_attention(items: Sequence[tuple[ItemAttention, Tensor]]) -> AttentionFigures:
    found = [item for item, _ in items]
    pictured = [(item, of_picture) for item, of_picture in items if of_picture.any()]
    return AttentionFigures(
        items=len(found),
        first_layer=found[0].first_layer,
        prefix_by_layer=torch.stack([item.prefix for item in found]).mean(0).T.tolist(),
        even_prefix=sum(item.even_prefix for item in found) / len(found),
        embedding_by_layer=torch.stack([item.prefix_of_embedding for item in found]).mean(0).T.tolist(),
        prefix=_mass([(1 - item.tokens.sum(1), 1 - float(item.even.sum())) for item in found]),
        pictures=_mass([(_share(item.tokens, own), float(_share(item.even, own))) for item, own in pictured])
        if pictured
        else None,
        apart=_mass([(_apart(item.tokens), 0.0) for item in found]) if len(found[0].tokens) > 1 else None,
    )


def _share(mass: Tensor, chosen: Tensor) -> Tensor:
    """[...] of [..., N]: the part of the mass that the chosen tokens have."""
    return mass[..., chosen].sum(-1) / mass.sum(-1)


def _mass(items: list[tuple[Tensor, float]]) -> Mass:
    values = torch.stack([own for own, _ in items])
    errors = [standard_error(column) for column in values.unbind(1)]
    return Mass(values.mean(0).tolist(), errors, sum(even for _, even in items) / len(items))


def _apart(tokens: Tensor) -> Tensor:
    """[K]: mean total variation between a row of ``tokens`` [K, N] and the others, each divided by its sum."""
    shares = tokens / tokens.sum(1, keepdim=True)
    return (shares[:, None] - shares[None]).abs().sum((1, 2)) / 2 / (len(shares) - 1)
