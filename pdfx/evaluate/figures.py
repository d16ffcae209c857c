"""What a report shows: figures, and examples with their pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from pdfx.data import ShardedDataset
from pdfx.evaluate.embedding import EmbeddedItems
from pdfx.evaluate.metrics import relevant_ranks, similarity
from pdfx.evaluate.retrieval import DIRECTIONS, directions_of, own_candidates
from pdfx.host.html import data_uri, thumbnail

Points = tuple[list[int], list[float]]
"""Steps and values."""

THEMES = {
    "light": {
        "text": "#1f2430",
        "grid": "#d9dce3",
        "paths": ("#0072b2", "#d98200", "#009e73", "#c0608f", "#d55e00", "#7a5ba6"),
    },
    "dark": {
        "text": "#e6e8ee",
        "grid": "#3a4050",
        "paths": ("#56b4e9", "#f0b03c", "#2fc79a", "#e79cc2", "#f58a4b", "#b79ce0"),
    },
}
"""Colours of text, grid and paths; the paths' are Okabe and Ito's (2008), which differ for every kind of colour vision,
made darker or lighter to stand out on the page, and a violet."""
PATH_STYLES = ("-", "--", "-.", ":")
MAX_CELLS = 12
"""Cells of a heat map's side up to which the numbers fit."""
SHOWN = 8
TOP = 5
THUMBNAIL = 112
"""Longest side in pixels."""
TEXT_CHARACTERS = 240


@dataclass(frozen=True)
class Picture:
    """Data URIs for the two kinds of page, their text for readers who cannot see them, and a caption."""

    light: str
    dark: str
    alt: str
    caption: str


def draw(
    size: tuple[float, float],
    rows: int,
    columns: int,
    paint: Callable[[list[Axes], dict], None],
    alt: str,
    caption: str,
) -> Picture:
    """Draw axes in a grid for both themes.

    Args:
        size: inches.
        paint: fills the axes, given the theme.
    """
    pictures = {name: data_uri("image/svg+xml", render(size, rows, columns, paint, name)) for name in THEMES}
    return Picture(pictures["light"], pictures["dark"], alt, caption)


def render(
    size: tuple[float, float], rows: int, columns: int, paint: Callable[[list[Axes], dict], None], theme: str
) -> bytes:
    """Draw axes in a grid as an SVG, for one theme; the same calls give the same bytes."""
    colours = THEMES[theme]
    named = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = {
        **dict.fromkeys(named, colours["text"]),
        "axes.edgecolor": colours["grid"],
        "grid.color": colours["grid"],
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "pdfx",
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        paint(list(figure.subplots(rows, columns, squeeze=False).flat), colours)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return stream.getvalue()


def loss_curves(paths: list[Points], fused: Points) -> Picture:
    """InfoNCE of every path and of the fused embedding over steps."""

    def paint(axes: list[Axes], theme: dict) -> None:
        for k, points in enumerate(paths):
            look = {"color": theme["paths"][k % len(theme["paths"])], "linestyle": PATH_STYLES[k % len(PATH_STYLES)]}
            axes[0].plot(*points, **look, linewidth=1.4, label=f"path {k}")
        axes[0].plot(*fused, color=theme["text"], linewidth=2, label="fused")
        finish(axes[0], "InfoNCE", "step")

    named = {"fused": fused, **{f"path {k}": points for k, points in enumerate(paths)}}
    ends = [f"{name} from {values[0]:.3f} to {values[-1]:.3f}" for name, (_, values) in named.items()]
    alt = f"Line chart of the contrastive losses over steps {fused[0][0]} to {fused[0][-1]}: {', '.join(ends)}."
    return draw(
        (6.0, 3.8), 1, 1, paint, alt, "Contrastive loss (InfoNCE, nats) of each path and of the fused embedding."
    )


def information_curves(information: Points, r2: Points) -> Picture:
    """The vCLUB estimate and the quality of the predictor behind it, over steps."""

    def paint(axes: list[Axes], theme: dict) -> None:
        axes[0].plot(*information, color=theme["text"], linewidth=1.8)
        finish(axes[0], "nats per dimension")
        axes[1].plot(*r2, color=theme["paths"][0], linewidth=1.8)
        finish(axes[1], "R² of q", "step")
        axes[1].set_ylim(min(0.0, *r2[1]) - 0.03, 1.03)

    alt = (
        f"Two line charts over steps {information[0][0]} to {information[0][-1]}: the mutual-information estimate "
        f"from {information[1][0]:.3g} "
        f"to {information[1][-1]:.3g} nats per dimension, and the R squared of its predictor from {r2[1][0]:.2f} to "
        f"{r2[1][-1]:.2f}."
    )
    caption = (
        "vCLUB estimate of the mutual information between paths, and the R² of its predictor q, both on pairs that q "
        "was not fitted to: if q predicts badly, the estimate is too low."
    )
    return draw((6.0, 3.8), 2, 1, paint, alt, caption)


def single_curve(points: Points, label: str, caption: str) -> Picture:
    """One quantity over steps."""

    def paint(axes: list[Axes], theme: dict) -> None:
        axes[0].plot(*points, color=theme["text"], linewidth=1.8)
        finish(axes[0], label, "step")

    alt = (
        f"Line chart of {label} over steps {points[0][0]} to {points[0][-1]}, from {points[1][0]:.3g} to "
        f"{points[1][-1]:.3g}."
    )
    return draw((6.0, 2.6), 1, 1, paint, alt, caption)


def finish(axes: Axes, y_label: str, x_label: str = "") -> None:
    axes.set_ylabel(y_label)
    axes.set_xlabel(x_label)
    axes.grid(True, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, ncols=4)


@dataclass(frozen=True)
class Card:
    """An item as it is shown: its text, cut if it is long, and thumbnails as data URIs."""

    text: str
    images: list[str]


@dataclass(frozen=True)
class Answer:
    card: Card
    right: bool
    score: float


@dataclass(frozen=True)
class Example:
    """A query, its first answers by fused cosine, and the (pessimistic) rank of the best right one among all."""

    query: Card
    answers: list[Answer]
    rank: int
    candidates: int


def find_examples(dataset: ShardedDataset, queries: EmbeddedItems, targets: EmbeddedItems) -> dict[str, list[Example]]:
    """Examples of each direction that is measured, evenly spaced over the data: neither good nor bad ones are sought.

    Raises:
        SampleError: a sample has been damaged since it was embedded.
    """
    sides = {DIRECTIONS[0]: (queries, "query", targets, "target"), DIRECTIONS[1]: (targets, "target", queries, "query")}
    return {direction: _examples(dataset, *sides[direction]) for direction in directions_of(queries, targets)}


def _examples(
    dataset: ShardedDataset, asking: EmbeddedItems, asking_side: str, answering: EmbeddedItems, answering_side: str
) -> list[Example]:
    count = min(SHOWN, len(asking.ids))
    examples = []
    for row in (i * len(asking.ids) // count for i in range(count)):
        own = own_candidates(asking, slice(row, row + 1))
        columns = own[0] if own is not None else torch.arange(len(answering.ids), device=answering.ids.device)
        scores = similarity(asking.fused[row : row + 1], answering.fused[columns])
        relevant = asking.ids[row] == answering.ids[columns]
        best = scores[0].topk(min(TOP, len(columns)))
        answers = [
            Answer(
                read_card(dataset, int(answering.samples[int(columns[place])]), answering_side),
                bool(relevant[place]),
                float(score),
            )
            for place, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        rank = int(relevant_ranks(scores, relevant[None])[0, 0])
        examples.append(Example(read_card(dataset, int(asking.samples[row]), asking_side), answers, rank, len(columns)))
    return examples


def read_card(dataset: ShardedDataset, sample: int, side: str) -> Card:
    item = dataset.read_item(sample, side)
    text = item["text"] if len(item["text"]) <= TEXT_CHARACTERS else item["text"][: TEXT_CHARACTERS - 1] + "…"
    return Card(text, [thumbnail(image, THUMBNAIL) for image in item["images"]])
