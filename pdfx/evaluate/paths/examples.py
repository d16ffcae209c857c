"""Items to look at: what each path attends to in a picture, and what each path finds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pdfx.data import ShardedDataset
from pdfx.evaluate.embedding import MAXSIM, EmbeddedItems
from pdfx.evaluate.figures import Answer, Card, read_card
from pdfx.evaluate.metrics import relevant_ranks, similarity
from pdfx.evaluate.paths.attention import ItemAttention, item_attention
from pdfx.evaluate.paths.likeness import evenly_spaced
from pdfx.evaluate.paths.picture_attention import darkest_factor, grids, maps, overlaid, picture_tokens
from pdfx.evaluate.retrieval import own_candidates
from pdfx.model import ParallelEmbedder

ATTENDED = 16
"""Items of each side whose attention is looked at."""
SHOWN = 4
"""Items that are shown: pictures of each side, and queries."""
TOP = 3


@dataclass(frozen=True)
class PictureMaps:
    """What each path attends to in one picture.

    Attributes:
        card: the item.
        paths: for each path the picture as a data URI, coloured by attention.
        factor: how many times even attention the darkest red stands for.
    """

    card: Card
    paths: list[str]
    factor: float


@dataclass(frozen=True)
class Column:
    """What one path, or the fused embedding, finds for a query: first answers, and the rank of the best right one."""

    label: str
    rank: int
    answers: list[Answer]


@dataclass(frozen=True)
class PathExample:
    query: Card
    columns: list[Column]


@dataclass(frozen=True)
class Attention:
    """Of one side's items.

    Attributes:
        items: each with which of its tokens stand for pictures, bool [N].
        maps: of some items with one picture.
    """

    items: list[tuple[ItemAttention, Tensor]]
    maps: list[PictureMaps]


def look(model: ParallelEmbedder, dataset: ShardedDataset, items: EmbeddedItems, side: str) -> Attention:
    """The attention of items of a side, evenly spaced over the data.

    Raises:
        SampleError: a sample has been damaged since it was embedded.
    """
    if model.processor is None:
        raise ValueError("The embedder has no processor; load it with from_pretrained or call attach_processor.")
    found, shown = [], []
    for row in evenly_spaced(len(items.ids), ATTENDED).tolist():
        item = dataset.read_item(int(items.samples[row]), side)
        prepared, _ = model.processor([item], [side])
        inputs = {name: tensor.to(model.device) for name, tensor in prepared.items()}
        attention, of_picture = item_attention(model, inputs), picture_tokens(model.processor, prepared["input_ids"][0])
        found.append((attention, of_picture))
        if len(item["images"]) == 1:
            ratios = (attention.tokens / attention.even)[:, of_picture]
            layers = [maps(path, grids(model, prepared)) for path in ratios]
            complete = [path for path in layers if path is not None]
            if len(complete) == len(layers):
                factor = darkest_factor([layer for path in complete for layer in path])
                pictures = [overlaid(item["images"][0], path, factor) for path in complete]
                shown.append(PictureMaps(read_card(dataset, int(items.samples[row]), side), pictures, factor))
    return Attention(found, [shown[number] for number in evenly_spaced(len(shown), SHOWN).tolist()])


def path_examples(dataset: ShardedDataset, queries: EmbeddedItems, targets: EmbeddedItems) -> list[PathExample]:
    """The first targets of each path for queries that are evenly spaced over the data: neither good nor bad ones are
    sought. Raises SampleError if a sample has been damaged since it was embedded."""
    found = []
    # One path is the fused embedding.
    passed_over = (MAXSIM, "fused") if queries.paths.shape[1] == 1 else (MAXSIM,)
    for row in evenly_spaced(len(queries.ids), SHOWN).tolist():
        own = own_candidates(queries, slice(row, row + 1))
        chosen = own[0] if own is not None else torch.arange(len(targets.ids), device=targets.ids.device)
        relevant = queries.ids[row] == targets.ids[chosen]
        columns = []
        for (label, asking), (_, answering) in zip(queries.scores(), targets.scores(), strict=True):
            if label in passed_over:
                continue
            scores = similarity(asking[row : row + 1], answering[chosen])
            best = scores[0].topk(min(TOP, len(chosen)))
            answers = [
                Answer(
                    read_card(dataset, int(targets.samples[int(chosen[place])]), "target"), bool(relevant[place]), score
                )
                for place, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
            rank = int(relevant_ranks(scores, relevant[None])[0, 0])
            columns.append(Column(label.replace("_", " "), rank, answers))
        found.append(PathExample(read_card(dataset, int(queries.samples[row]), "query"), columns))
    return found
