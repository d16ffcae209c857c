"""What was read: the records of samples, tokens and FLOPs, and of samples that could not be used."""

from __future__ import annotations

import torch

from pdfx.data import Batch
from pdfx.telemetry.flops import StepCost, padding_share
from pdfx.train.run import Hook, Run
from pdfx.train.schedule import global_batch


class Coverage(Hook):
    """Counts every batch over all ranks, reports what could not be used, and ends the run if that is too much.

    Attributes:
        truncated: texts that were cut so far.
    """

    key = "truncated"

    def __init__(self, run: Run):
        self.cost = StepCost(run.engine.module.embedder, run.config.train.chunk_paths, run.config.model.cache_vision)
        self.truncated = 0
        self._warned_oversized = False
        self._epochs = run.loader.epochs

    def batch_ready(self, run: Run, batch: Batch) -> None:
        """Raises UserError if too many samples could not be used."""
        loader, world, step = run.loader, run.world, run.step + 1
        pairs = global_batch(run.config.train, world.size)
        counts = [
            len(batch.problems),
            batch.truncated,
            count_tokens(batch),
            batch.oversized,
            self.cost.of(batch),
            *loader.coverage.count(batch.problems),
        ]
        corrupt, truncated, tokens, oversized, flops, *unusable = world.total(counts)
        sentences = [problem.sentence for own in world.gather(batch.problems) for problem in own] if corrupt else []
        self.truncated += truncated
        loader.coverage.add(unusable)
        run.timer.add(pairs, tokens, flops, padding_share(batch, run.engine.module.embedder, world.device))
        run.say(*(f"step {step}: {sentence}" for sentence in sentences))
        if oversized and not self._warned_oversized:
            self._warned_oversized = True
            run.say(
                f"step {step}: {oversized} inputs hold more tokens than train.chunk_tokens allows for all paths of a "
                "pass, so each is a chunk of its own; "
                "lower inputs.max_text_tokens or the images' bounds if memory runs out. This is said once."
            )
        with world.together():
            loader.guard.add(pairs, corrupt, sentences)

    def step_done(self, run: Run, metrics: dict[str, float]) -> None:
        metrics |= self.figures(run)

    def went_back(self, run: Run, state: dict, repeat: bool) -> None:
        if repeat:
            self.restore(state)
            self._epochs = run.loader.epochs

    def figures(self, run: Run) -> dict[str, float]:
        """Epochs and samples so far, and how many could not be used as they are."""
        samples, loader = run.loader.samples, run.loader
        corrupt = {"corrupt": loader.guard.corrupt, "truncated": self.truncated}
        return {"epoch": samples / loader.epoch_samples, "samples": samples, **corrupt}

    def finished_epoch(self, run: Run) -> bool:
        """Whether an epoch has ended since the last call."""
        before, self._epochs = self._epochs, run.loader.epochs
        return before != self._epochs

    def state_dict(self) -> int:
        return self.truncated

    def load_state_dict(self, state: int) -> None:
        self.truncated = state


def count_tokens(batch: Batch) -> int:
    """Tokens of this rank's items, images included, before they are repeated for the paths."""
    return sum(int(torch.sum(chunk.inputs["attention_mask"])) for chunk in batch.chunks)
