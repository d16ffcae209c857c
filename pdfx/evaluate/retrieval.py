"""Retrieval over a directory of shards: embed every query and every distinct target once, shared out over ranks, and measure both directions.

Metrics are keyed ``DIRECTION/SCORE/METRIC``, for example ``query_to_target/fused/recall@10``. Directions are ``query_to_target`` and
``target_to_query``; scores are ``path_0`` to ``path_K-1``, ``fused``, ``maxsim`` (best of paths) and ``chance`` (what a random order gives).
Beside them stand ``path_cosine`` (of several paths only), ``queries`` and ``targets`` (how many there are). Where queries have candidates of their
own, ``precision@1`` is told as well, and ``candidates`` is their mean number. There, and where some targets belong to no query,
``target_to_query`` has no meaning and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, distributed

from pdfx.config import EvaluateSection
from pdfx.data import Candidates, Items, ShardedDataset, iterate_inputs, retrieval_items, share_of_rank
from pdfx.evaluate.metrics import chance_metrics, path_cosine, ranking_metrics
from pdfx.model import EmbedderOutput

DIRECTIONS = ("query_to_target", "target_to_query")
MAXSIM = "maxsim"
CHANCE = "chance"

EmbedInputs = Callable[[dict[str, Tensor]], EmbedderOutput]
"""Embeds what the processor returns; moves it to the model's device first."""
Progress = Callable[[int, int], None]
"""Called with (items done, items in all) of this rank."""


@dataclass(frozen=True)
class EmbeddedItems:
    """Queries or targets of all ranks. Shapes: n items, K paths, D dimensions.

    Attributes:
        paths: float32 [n, K, D].
        fused: float32 [n, F].
        ids: int64 [n], identity of the target, or of a query's target.
        samples: int64 [n], number of the sample in the dataset.
        candidates: of queries, the targets that each is ranked against; None where that is all of them.
    """

    paths: Tensor
    fused: Tensor
    ids: Tensor
    samples: np.ndarray
    candidates: Candidates | None = None

    def scores(self) -> Iterator[tuple[str, Tensor]]:
        """The ways to score, each with the embeddings that ``metrics.similarity`` takes."""
        for k, path in enumerate(self.paths.unbind(1)):
            yield f"path_{k}", path
        yield "fused", self.fused
        yield MAXSIM, self.paths


def evaluate_shards(
    embed_inputs: EmbedInputs,
    dataset: ShardedDataset,
    processor,
    settings: EvaluateSection,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> dict[str, float]:
    """All metrics, alike on every rank. Every rank must call this, and then makes the same number of forward passes of the same sizes.

    Raises:
        UserError: a sample is damaged.
        ValueError: an embedding is not finite.
    """
    queries, targets = embed_shards(embed_inputs, dataset, processor, settings.batch_size, rank, world_size, num_workers, progress)
    return retrieval_metrics(queries, targets, settings.recall_at, rank, world_size)


@torch.no_grad()
def embed_shards(
    embed_inputs: EmbedInputs,
    dataset: ShardedDataset,
    processor,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> tuple[EmbeddedItems, EmbeddedItems]:
    """Queries and distinct targets, each embedded once by one rank and gathered on all. Arguments and errors as of ``evaluate_shards``."""
    items = retrieval_items(dataset)
    shares = [share_of_rank(side.samples, rank, world_size) for side in items]
    total, done, embedded = sum(map(len, shares)), 0, []
    for side, own, name in zip(items, shares, ("query", "target"), strict=True):
        outputs = []
        for inputs in iterate_inputs(dataset, own, name, processor, batch_size, num_workers):
            outputs.append(embed_inputs(inputs))
            done += len(outputs[-1].paths)
            if progress is not None:
                progress(done, total)
        embedded.append(_gather_side(outputs, side, world_size))
    return embedded[0], embedded[1]


def _gather_side(outputs: list[EmbedderOutput], items: Items, world_size: int) -> EmbeddedItems:
    paths, fused = (_gather(torch.cat([output[name] for output in outputs]).float(), world_size) for name in ("paths", "fused"))
    # Shares are consecutive, so all fillers stand at the end.
    count = len(items.samples)
    return EmbeddedItems(paths[:count], fused[:count], torch.from_numpy(items.target_ids).to(paths.device), items.samples, items.candidates)


def _gather(tensor: Tensor, world_size: int) -> Tensor:
    """Every rank's rows [n, ...], in the order of ranks: [W * n, ...]."""
    if world_size == 1:
        return tensor
    gathered = [torch.empty_like(tensor) for _ in range(world_size)]
    distributed.all_gather(gathered, tensor.contiguous())
    return torch.cat(gathered)


def retrieval_metrics(queries: EmbeddedItems, targets: EmbeddedItems, recall_at: Sequence[int], rank: int = 0, world_size: int = 1) -> dict[str, float]:
    """The metrics of embedded items; each rank ranks its share of the rows, and all ranks get the same means."""
    sums: dict[str, Tensor] = {}
    for direction in directions_of(queries, targets):
        asking, answering = (queries, targets) if direction == DIRECTIONS[0] else (targets, queries)
        mine = slice(len(asking.ids) * rank // world_size, len(asking.ids) * (rank + 1) // world_size)
        own = own_candidates(asking, mine)
        for (score, rows), (_, candidates) in zip(asking.scores(), answering.scores(), strict=True):
            metrics = ranking_metrics(rows[mine], candidates, asking.ids[mine], answering.ids, recall_at, own_candidates=own)
            sums |= {f"{direction}/{score}/{name}": values.sum() / len(asking.ids) for name, values in metrics.items()}
        chance = _chance(asking.ids[mine], answering.ids, own, recall_at)
        sums |= {f"{direction}/{CHANCE}/{name}": values.sum() / len(asking.ids) for name, values in chance.items()}
    means = torch.stack(list(sums.values()))
    if world_size > 1:
        distributed.all_reduce(means)
    metrics = dict(zip(sums, means.tolist(), strict=True))
    if queries.paths.shape[1] > 1:
        metrics["path_cosine"] = (path_cosine(queries.paths) + path_cosine(targets.paths)) / 2
    metrics |= {"queries": len(queries.ids), "targets": len(targets.ids)}
    if queries.candidates is not None:
        metrics["candidates"] = len(queries.candidates.rows) / len(queries.ids)
    return metrics


def directions_of(queries: EmbeddedItems, targets: EmbeddedItems) -> tuple[str, ...]:
    """Both; or the first alone, where a target has no query to find or is no candidate of most queries."""
    both = queries.candidates is None and bool(torch.isin(targets.ids, queries.ids).all())
    return DIRECTIONS if both else DIRECTIONS[:1]


def own_candidates(asking: EmbeddedItems, rows: slice) -> list[Tensor] | None:
    """For each of these rows, which targets it is ranked against; None where that is all of them."""
    if asking.candidates is None:
        return None
    starts = asking.candidates.starts[rows.start : rows.stop + 1]
    chosen = torch.from_numpy(asking.candidates.rows[starts[0] : starts[-1]]).to(asking.ids.device)
    return list(chosen.split(np.diff(starts).tolist()))


def _chance(query_ids: Tensor, target_ids: Tensor, own: list[Tensor] | None, recall_at: Sequence[int]) -> dict[str, Tensor]:
    if own is None:
        return chance_metrics(relevant_counts(query_ids, target_ids), len(target_ids), recall_at)
    # Targets are distinct, and a query's own is among its candidates.
    return chance_metrics(torch.ones_like(query_ids), query_ids.new_tensor([len(candidates) for candidates in own]), recall_at)


def relevant_counts(query_ids: Tensor, candidate_ids: Tensor) -> Tensor:
    """int64 [n]: how many of the candidates bear each query's identity."""
    ordered = candidate_ids.sort().values
    return torch.searchsorted(ordered, query_ids, right=True) - torch.searchsorted(ordered, query_ids)
