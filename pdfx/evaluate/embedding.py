"""Embedding a directory of shards for evaluation: every distinct query and target once, shared out over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pdfx.config import EvaluateSection
from pdfx.data import (
    Candidates,
    Items,
    ShardedDataset,
    check_share,
    iterate_inputs,
    left_after,
    retrieval_items,
    share_of_rank,
)
from pdfx.data.retrieval import RetrievalItems
from pdfx.distributed.world import World
from pdfx.errors import UserError
from pdfx.host.console import ShowProgress
from pdfx.model import EmbedderOutput, InputProcessor
from pdfx.objective.gather import all_gather

MAXSIM = "maxsim"
NAMED = 10
"""Samples that cannot be used are named up to so many."""
SHARE = "evaluate.max_corrupt_share (--max-corrupt-share)"

Say = Callable[[str], None]
"""Called with a sentence for the user."""


@dataclass(frozen=True)
class Evaluator:
    """What embeds data sets for their evaluation.

    Attributes:
        embed: embeds what the processor returns; moves it to the model's device first.
        processor: makes the model's inputs.
        settings: batch size, the k of recall@k, and the share of samples that may be unusable.
        world: the ranks that share the work.
        num_workers: processes of each rank that decode pictures.
        say: is given sentences for the user; None where nobody reads them.
        keep: is given a data set and its embedded queries and targets, alike on every rank.
    """

    embed: Callable[[dict[str, Tensor]], EmbedderOutput]
    processor: InputProcessor
    settings: EvaluateSection
    world: World = World(0, 1, torch.device("cpu"), None)
    num_workers: int = 0
    say: Say | None = None
    keep: Callable[[ShardedDataset, EmbeddedItems, EmbeddedItems], None] | None = None


@dataclass(frozen=True)
class EmbeddedItems:
    """Queries or targets of all ranks. Shapes: n items, K paths, D dimensions.

    Attributes:
        paths: float32 [n, K, D].
        fused: float32 [n, F].
        ids: int64 [n], identity of the target, or of a query's target.
        samples: int64 [n], number of the sample in the dataset.
        candidates: of queries, the targets that each is ranked against; None if that is all of them.
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


@torch.no_grad()
def embed_shards(
    evaluator: Evaluator, dataset: ShardedDataset, progress: ShowProgress | None = None
) -> tuple[EmbeddedItems, EmbeddedItems, dict[str, int]]:
    """Queries, targets, and the counts of what is left out and cut; errors as of ``retrieval.evaluate_shards``."""
    settings, world = evaluator.settings, evaluator.world
    items = _items_of_first(dataset, world)
    sides = {"query": items.queries, "target": items.targets}
    shares = {name: share_of_rank(side.samples, world.rank, world.size) for name, side in sides.items()}
    books = _Books(dataset, settings.max_corrupt_share, world, dict(items.problems))
    total, done, embedded = sum(map(len, shares.values())), 0, []
    for name, side in sides.items():
        outputs = []
        how = evaluator.processor, settings.batch_size, evaluator.num_workers
        for batch in iterate_inputs(dataset, shares[name], name, *how):
            books.add(batch.truncated, batch.problems)
            outputs.append(evaluator.embed(batch.inputs))
            done += len(outputs[-1].paths)
            if progress is not None:
                progress(done, total)
        books.close()
        # Shares are consecutive, so all fillers stand at the end.
        paths, fused = (torch.cat([output[key] for output in outputs]).float() for key in ("paths", "fused"))
        embedded.append([all_gather([own])[0][: len(side.samples)] for own in (paths, fused)])
    if evaluator.say is not None:
        books.tell(evaluator.say)
    ask, search, candidates = left_after(items, *books.bad)
    if not len(ask):
        raise UserError(
            f"The evaluation data {dataset.path} has no query left, with a target, that can be used. "
            f"{' '.join(books.sentences())}"
        )
    counts = {"left_out": len(books.problems), "left_out_queries": len(items.queries.samples) - len(ask)}
    counts |= {
        "left_out_targets": len(items.targets.samples) - len(search),
        "truncated_queries": books.truncated[0],
        "truncated_targets": books.truncated[1],
    }
    return _rows(embedded[0], items.queries, ask, candidates), _rows(embedded[1], items.targets, search), counts


class _Books:
    """The samples that cannot be used and the texts that are cut.

    Attributes:
        problems: a sentence by sample, of all ranks and sides.
        bad: the samples of each side that is closed.
        truncated: texts that are cut of each side that is closed.
    """

    def __init__(self, dataset: ShardedDataset, max_share: float, world: World, problems: dict[int, str]):
        self._dataset, self._max_share, self._world = dataset, max_share, world
        self.problems = problems
        self.bad: list[dict[int, str]] = []
        self.truncated: list[int] = []
        self._found: dict[int, str] = {}
        self._cut = 0
        self._check()

    def add(self, truncated: int, problems: dict[int, str]) -> None:
        """Count a batch of this rank. Raises UserError if the rank alone has met too many, as when storage is gone."""
        self._cut += truncated
        if problems:
            self._found |= problems
            self._check()

    def close(self) -> None:
        """Take in what all ranks counted of a side. Raises UserError, on all of them, if that is too much."""
        everyones = self._world.gather((self._found, self._cut))
        self.bad.append({sample: sentence for found, _ in everyones for sample, sentence in found.items()})
        self.truncated.append(sum(cut for _, cut in everyones))
        self.problems |= self.bad[-1]
        self._found, self._cut = {}, 0
        self._check()

    def _check(self) -> None:
        problems = self.problems | self._found
        names = list(problems.values())
        check_share(
            len(problems), len(self._dataset), self._max_share, names, f"samples of {self._dataset.path}", SHARE
        )

    def sentences(self) -> list[str]:
        return [self.problems[sample] for sample in sorted(self.problems)[:NAMED]]

    def tell(self, say: Say) -> None:
        for sentence in self.sentences():
            say(sentence)
        if len(self.problems) > NAMED:
            say(
                f"{len(self.problems) - NAMED} more samples of {self._dataset.path} cannot be used; 'pdfx shards "
                "check --full --processor MODEL' names all."
            )


def _rows(
    embedded: Sequence[Tensor], items: Items, rows: np.ndarray, candidates: Candidates | None = None
) -> EmbeddedItems:
    paths, fused = (tensor[torch.from_numpy(rows).to(tensor.device)] for tensor in embedded)
    ids = torch.from_numpy(items.target_ids[rows]).to(paths.device)
    return EmbeddedItems(paths, fused, ids, items.samples[rows], candidates)


def _items_of_first(dataset: ShardedDataset, world: World) -> RetrievalItems:
    """What rank 0 lists, on every rank. Raises UserError, on every rank, if rank 0 met it."""
    found: RetrievalItems | UserError | None = None
    if world.rank == 0:
        try:
            found = retrieval_items(dataset)
        except UserError as error:
            found = error
    found = world.from_first(found)
    if isinstance(found, UserError):
        raise found
    return found
