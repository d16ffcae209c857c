"""What figures about paths say: tables, heat maps, and for each a sentence that says how to read it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pdfx.evaluate.figures import Picture
from pdfx.evaluate.paths.drawings import Panel, heat_maps
from pdfx.evaluate.paths.measure import AttentionFigures, DirectionFigures, Mass, PathFigures
from pdfx.evaluate.paths.spectrum import Ranks
from pdfx.evaluate.tables import DIRECTION_LABELS

FIGURES = {"cosine": "centred cosine", "cka": "linear CKA", "r2": "held-out R²"}
OUTCOME_LABELS = {"recall@1": "recall@1", "mrr": "MRR"}
ONE_PATH = (
    "The model has one path, so there is nothing to compare; the effective rank, the attention and the neighbours are "
    "those of this path."
)


@dataclass(frozen=True)
class Finding:
    """One table and its heat maps.

    Attributes:
        reading: how to read it.
        header: names of the columns; the first is of what a row is about.
    """

    title: str
    reading: str
    header: list[str]
    rows: list[list[str]]
    pictures: list[Picture] = field(default_factory=list)


def findings(figures: PathFigures) -> list[Finding]:
    """All that there is to say."""
    found = []
    if figures.likeness:
        found.append(_likeness(figures))
    found.append(_ranks(figures.rank))
    if figures.directions:
        found += [
            _neighbours(figures.directions),
            _choice(figures.directions),
            _errors(figures.directions),
        ]
    return [*found, _attention(figures.attention)]


def number(value: float, error: float | None = None) -> str:
    """With its standard error, if there is one."""
    if not math.isfinite(value):
        return "not defined"
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _likeness(figures: PathFigures) -> Finding:
    rows, panels = [], []
    for side, found in figures.likeness.items():
        for name, own in found.items():
            rows.append([f"{side}, {FIGURES[name]}", number(own.mean), number(own.independent, own.spread)])
            panels.append(Panel(f"{side}: {FIGURES[name]}", own.matrix))
    caption = "Each path beside each other one, of the same items; of R², the row's path predicts the column's."
    return Finding(
        "How alike two paths are",
        "1: the paths say the same, up to a shift (cosine), a rotation and scale (CKA), or a linear map (R², for items "
        "that the map was not fitted to). Independent paths are these paths with the items of each in an order of its "
        "own, and what they show (± standard deviation) is what chance shows. The cosine alone can be low for paths "
        "that predict one another.",
        ["side, figure", "mean over pairs", "independent paths"],
        rows,
        [heat_maps(panels, len(panels) // len(figures.likeness), (-1, 1), caption)],
    )


def _ranks(ranks: dict[str, Ranks]) -> Finding:
    several = len(next(iter(ranks.values())).paths) > 1
    rows = []
    for side, own in ranks.items():
        mean = sum(own.paths) / len(own.paths)
        apart = [f"{own.subset:.1f}", f"{own.union:.1f}", f"{own.independent:.1f}"] if several else []
        rows.append(
            [side, f"{mean:.1f} ({min(own.paths):.1f} to {max(own.paths):.1f})" if several else f"{mean:.1f}", *apart]
        )
    return Finding(
        "In how many directions embeddings vary",
        "Effective rank: the exponential of the entropy of the covariance's spectrum (Roy and Vetterli, 2007); 10 says "
        "that the embeddings vary about as much as if they did so evenly in 10 directions."
        + (
            " All paths side by side have the rank of one path if they are copies, and that of independent paths (the "
            "items of each in an order of its own) if they share nothing. As many random dimensions of all paths as "
            "one path has show what mixing paths alone brings."
            if several
            else ""
        ),
        ["side", "one path", *(["as many dimensions of all", "all paths", "independent paths"] if several else [])],
        rows,
    )


def _neighbours(directions: dict[str, DirectionFigures]) -> Finding:
    rows = [
        [
            f"{DIRECTION_LABELS[name]}, {own.nearest} nearest",
            number(own.neighbours.mean, own.neighbours.error),
            number(own.chance),
        ]
        for name, own in directions.items()
    ]
    panels = [Panel(DIRECTION_LABELS[name], own.neighbours.matrix) for name, own in directions.items()]
    caption = "Share of the nearest items that two paths have in common."
    return Finding(
        "Whether two paths find the same",
        "Share of a query's nearest items that two paths have in common (± standard error over queries). 1: they find "
        "the same; chance is that of random orders.",
        ["direction, items", "mean over pairs", "chance"],
        rows,
        [heat_maps(panels, len(panels), (0, 1), caption)],
    )


def _choice(directions: dict[str, DirectionFigures]) -> Finding:
    rows = []
    for name, own in directions.items():
        for outcome, oracle in own.oracle.items():
            paths, copies = oracle.paths, oracle.copies
            rows.append(
                [
                    f"{DIRECTION_LABELS[name]}, {OUTCOME_LABELS[outcome]}",
                    number(paths.alone),
                    number(oracle.fused),
                    number(paths.best),
                    number(paths.gain, paths.error),
                    number(copies.gain, copies.error),
                    number(oracle.advantage, oracle.error),
                ]
            )
    return Finding(
        "What the best path for each query would gain",
        "Whoever chooses a path for each query after seeing the answer wins by luck, too. The control is the same "
        "choice among as many noisy copies of the fused embedding, which find the same neighbours as often as two "
        "paths do: noise knows nothing of a query, so their gain is luck. Paths are good at different queries only as "
        "far as the last column is above 0 by more than about two standard errors (±).",
        ["direction, figure", "one path", "fused", "best path", "gain", "gain of noisy copies", "beyond luck"],
        rows,
    )


def _errors(directions: dict[str, DirectionFigures]) -> Finding:
    rows, panels = [], []
    for name, own in directions.items():
        for words, found in (("misses (phi)", own.misses), ("reciprocal ranks", own.ranks)):
            label = f"{DIRECTION_LABELS[name]}, {words}"
            rows.append([label, number(found.mean, found.error), number(found.copies)])
            panels.append(Panel(label, found.matrix))
    caption = "Correlation over queries between paths; without a number if one is right, or wrong, for all queries."
    return Finding(
        "Whether two paths fail together",
        "Correlation over queries (± standard error): of whether a path's first answer is wrong, and of one over the "
        "rank of the right answer. 1: they fail at the same queries; 0: independently. Queries differ in difficulty, "
        "so any two embeddings fail together to some degree; the noisy copies show how much.",
        ["direction, of what", "mean over pairs", "noisy copies"],
        rows,
        [heat_maps(panels, 2, (-1, 1), caption)],
    )


def _attention(attention: dict[str, AttentionFigures]) -> Finding:
    rows, panels = [], []
    several = all(own.apart for own in attention.values())
    for side, own in attention.items():
        for k in range(len(own.prefix.paths)):
            apart = [number(own.apart.paths[k], own.apart.errors[k])] if own.apart else []
            rows.append([f"{side}, path {k}", *_mass(own.prefix, k), *_mass(own.pictures, k), *apart])
        panels.append(Panel(f"{side}: all tokens", own.prefix_by_layer))
        # If all tokens are pooled, they are the embedding's.
        if own.embedding_by_layer != own.prefix_by_layer:
            panels.append(Panel(f"{side}: the embedding's tokens", own.embedding_by_layer))
    evens = ", ".join(f"{number(own.even_prefix)} ({side})" for side, own in attention.items())
    caption = f"Mass on the prefix by layer and path. Even attention of all tokens would give {evens}."
    items = " and ".join(f"{own.items} {side} items" for side, own in attention.items())
    return Finding(
        "What paths attend to",
        f"Share of attention, mean over heads, layers and {items} (± standard error over items), of the tokens that "
        "are pooled into the embedding: on the prefix, and, of what goes to the item itself, on its pictures. Even: if "
        "all that is seen got the same; a path at that figure does not steer attention by its prefix's keys, though "
        "the values still act."
        + (
            " Apart: total variation between what a path and the others give to the item's tokens, 0 if they attend "
            "alike and 1 if to different tokens."
            if several
            else ""
        ),
        ["side, path", "on the prefix", "even", "on pictures", "even", *(["apart"] if several else [])],
        rows,
        [heat_maps(panels, 2, (0, 1), caption, "layer", own.first_layer)],
    )


def _mass(mass: Mass | None, k: int) -> list[str]:
    return ["no pictures", ""] if mass is None else [number(mass.paths[k], mass.errors[k]), number(mass.even)]
