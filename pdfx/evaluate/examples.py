"""Queries with the items that the model ranks first, as the report shows them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pdfx.data import ShardedDataset
from pdfx.evaluate.embedding import EmbeddedItems
from pdfx.evaluate.metrics import relevant_ranks, similarity
from pdfx.evaluate.retrieval import DIRECTIONS, directions_of, own_candidates
from pdfx.host.data_uris import thumbnail

SHOWN = 8
TOP = 5
THUMBNAIL = 112
"""Longest side in pixels."""
TEXT_CHARACTERS = 240


@dataclass(frozen=True)
class Card:
    """An item as it is shown: its text, cut where it is long, and thumbnails as data URIs."""

    text: str
    images: list[str]


@dataclass(frozen=True)
class Answer:
    card: Card
    right: bool
    score: float


@dataclass(frozen=True)
class Example:
    """A query, its first answers by the fused embedding's cosine, and the (pessimistic) rank of the best right answer
    among all candidates."""

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
