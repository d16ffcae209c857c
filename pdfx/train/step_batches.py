"""From the loader to the step: batches with what all ranks must know of them, and the books about what could not be
used."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from pdfx.data import Batch, TrainLoader
from pdfx.distributed.world import World
from pdfx.model import ParallelEmbedder
from pdfx.telemetry.flops import StepCost, padding_share
from pdfx.telemetry.metrics import StepTimer


class Feed:
    """Hands out this rank's batches; every rank calls it together.

    Args:
        loader: this rank's.
        world: this run's ranks.
        cost: counts FLOPs of a batch.
        truncated: texts that were cut before, over all ranks.
    """

    def __init__(self, loader: TrainLoader, world: World, cost: StepCost, truncated: int = 0):
        self.loader, self.world, self.cost, self.truncated = loader, world, cost, truncated
        self._told_oversized = False
        self._epochs = loader.epochs

    def next(
        self, step: int, global_pairs: int, timer: StepTimer, embedder: ParallelEmbedder, say: Callable[[str], None]
    ) -> Batch:
        """The batch of optimiser step ``step``, counted in ``timer``, in the books of coverage and by the guard against
        corrupt data.

        Args:
            global_pairs: pairs of the step over all ranks.
            embedder: for what is padding in its attention.
            say: tells the run's owner a sentence.

        Raises:
            UserError: too many samples could not be used, or the data cannot be read.
        """
        started = time.perf_counter()
        with self.world.together():
            batch = next(self.loader)
        timer.waited += time.perf_counter() - started
        counts = [
            len(batch.problems),
            batch.truncated,
            count_tokens(batch),
            batch.oversized,
            self.cost.of(batch),
            *self.loader.coverage.count(batch.problems),
        ]
        corrupt, truncated, tokens, oversized, flops, *unusable = self.world.total(counts)
        sentences = (
            [problem.sentence for own in self.world.gather(batch.problems) for problem in own] if corrupt else []
        )
        self.truncated += truncated
        self.loader.coverage.add(unusable)
        timer.add(global_pairs, tokens, flops, padding_share(batch, embedder, self.world.device))
        for sentence in sentences:
            say(f"step {step}: {sentence}")
        if oversized and not self._told_oversized:
            self._told_oversized = True
            say(
                f"step {step}: {oversized} inputs hold more tokens than train.chunk_tokens allows for all paths of a "
                "pass, so each is a chunk of its own; "
                "lower inputs.max_text_tokens or the images' bounds where memory runs out. This is said once."
            )
        with self.world.together():
            self.loader.guard.add(global_pairs, corrupt, sentences)
        return batch

    def finished_epoch(self) -> int | None:
        """The number of epochs that are complete, where the last batch completed one; None otherwise."""
        if self.loader.epochs == self._epochs:
            return None
        self._epochs = self.loader.epochs
        return self._epochs

    def figures(self) -> dict[str, float]:
        """For the record of a step: epochs and samples so far, and what could not be used as it is."""
        samples = self.loader.samples
        return {
            "epoch": samples / self.loader.epoch_samples,
            "samples": samples,
            "corrupt": self.loader.guard.corrupt,
            "truncated": self.truncated,
        }


def count_tokens(batch: Batch) -> int:
    """Tokens of this rank's items, images included, before they are repeated for the paths."""
    return sum(int(torch.sum(chunk.inputs["attention_mask"])) for chunk in batch.chunks)
