"""One optimiser step by chunked backprop on the DeepSpeed engine.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv 2101.06983): the loss and
its gradient are computed on the embeddings of all chunks, then each chunk is embedded again with its graph and receives
its part of that gradient. Chunks may also be cut across the paths, and ranks may have different numbers of them (both
ours). A single pass keeps its graph and is done once. Legend: B pairs on this rank, K paths, k paths of one pass, M
hard negatives per pair, D dimension of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

import deepspeed
import torch
from torch import Tensor

from pdfx.config import TrainSection
from pdfx.data.batch import Batch, Chunk
from pdfx.distributed.world import World
from pdfx.model.fusion import fuse
from pdfx.objective import Objective, PairEmbeddings, PairIdentities
from pdfx.objective.gather import all_reduce_sum
from pdfx.telemetry.timing import Phases
from pdfx.train.engine import bound_temperature
from pdfx.train.reduction import backward_all
from pdfx.train.schedule import derived_seed


@dataclass
class Pass:
    """One forward pass of a step: a chunk's items by some of the paths."""

    chunk: Chunk
    paths: list[int]
    number: int
    """Among the passes of the step, from 0; the same on every rank."""

    def place(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where its embeddings stand in ``[(2 + M) B, K, D]``."""
        return self.chunk.slots.to(device)[:, None], torch.tensor(self.paths, device=device)


@dataclass
class Embeddings:
    """The embeddings of a pass or of a whole batch, and what the objective needs beside them.

    Attributes:
        paths: ``[n, k, D]`` for a pass, ``[(2 + M) B, K, D]`` in the order of slots for a batch.
        log_temperature: scalar.
        fusion_logits: ``[K]``, ``[K, D]`` if the fusion is routed, or ``[0]`` if it is not learned.
    """

    paths: Tensor
    log_temperature: Tensor
    fusion_logits: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.paths, self.log_temperature, self.fusion_logits


class Stepper:
    """Makes optimiser steps.

    Dropout in a pass depends on (seed, step, rank, number of the pass) alone: its second time repeats the first
    exactly, and a resumed run repeats the uninterrupted one, without any random state being kept.

    Args:
        engine: wraps a ``TrainingModule``.
        objective: loss on embeddings.
        world: this run's ranks.
        train: the run's ``train`` section.
        filler: the processor's output for one item, embedded to no effect if other ranks have more chunks.
        reduce_once: see ``reduction.backward_all``.
    """

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        objective: Objective,
        world: World,
        train: TrainSection,
        filler: dict[str, Tensor],
        reduce_once: bool,
    ):
        self.engine = engine
        self.objective = objective
        self.world = world
        self.seed = train.seed
        self.reduce_once = reduce_once
        config = engine.module.embedder.config
        self.fusion, self.path_groups = config.fusion, group_paths(config.paths, train.chunk_paths)
        self.filler = Chunk(filler, torch.empty(0, dtype=torch.int64))
        self.phases = Phases(world.device)

    def __call__(self, batch: Batch, step: int) -> dict[str, float]:
        """Update the parameters by one batch, or leave all of them and the optimiser's state as they are if loss or
        gradient is not finite on some rank.

        Args:
            batch: this rank's share.
            step: the optimiser step, counted from 1.

        Returns:
            The objective's metrics and ``grad_norm``, the norm before clipping; alike on every rank. ``was_skipped``
            says whether there was no update.
        """
        passes = self.passes(batch)
        batch = replace(batch, chunks=[]).to(self.world.device, non_blocking=True)
        kept = self.embed(passes[0], step, with_graph=True) if len(passes) == 1 else None
        outputs = (self.embed(part, step, with_graph=False) for part in passes) if kept is None else iter([kept])
        embeddings = self.assemble(batch, passes, outputs)
        with self.phases("objective"):
            gradients, metrics = self.gradients(batch, embeddings, step)
        if gradients is None:
            return metrics | {"grad_norm": math.nan}
        backward_all(
            self.engine, self.surrogates(passes, kept, gradients, step), len(passes), self.reduce_once, self.phases
        )
        with self.phases("optimiser"):
            self.engine.step()
            bound_temperature(self.engine)
        # Where it is not finite, DeepSpeed has dropped the gradients of all ranks and updated nothing.
        return metrics | {"grad_norm": float(self.engine.get_global_grad_norm())}

    def passes(self, batch: Batch) -> list[Pass]:
        """The forward passes of a batch, as many on every rank: under ZeRO-3 each gathers parameters from all."""
        count = self.world.largest([len(batch.chunks)])[0]
        chunks = batch.chunks + [self.filler] * (count - len(batch.chunks))
        return [
            Pass(chunk, paths, number)
            for number, (chunk, paths) in enumerate((chunk, paths) for chunk in chunks for paths in self.path_groups)
        ]

    def embed(self, part: Pass, step: int, with_graph: bool) -> Embeddings:
        """Do one pass in training mode, with the random numbers that belong to it."""
        # A chunk's pictures are on the device only while it is embedded, so a larger batch takes no more of the
        # device's memory.
        inputs = {name: tensor.to(self.world.device, non_blocking=True) for name, tensor in part.chunk.inputs.items()}
        torch.manual_seed(derived_seed(self.seed, "dropout", step, self.world.rank, part.number))
        with torch.set_grad_enabled(with_graph), self.phases("embed"):
            return Embeddings(*self.engine(inputs, part.paths))

    def assemble(self, batch: Batch, passes: list[Pass], outputs: Iterator[Embeddings]) -> Embeddings:
        """Leaves that hold every pass's embeddings in their places."""
        items, count = (2 + batch.negatives) * batch.pairs, sum(map(len, self.path_groups))
        first = next(outputs)
        shape, beside = (items, count, first.paths.shape[-1]), first.tensors()[1:]
        whole = Embeddings(first.paths.new_empty(shape), *(tensor.detach().clone() for tensor in beside))
        for part, output in zip(passes, chain([first], outputs), strict=True):
            whole.paths[part.place(whole.paths.device)] = output.paths.detach()[: len(part.chunk.slots)]
        return whole

    def gradients(self, batch: Batch, embeddings: Embeddings, step: int) -> tuple[Embeddings | None, dict[str, float]]:
        """The gradient of the loss with respect to the whole batch's embeddings and what stands beside them, None if
        the loss is not finite on some rank; and the objective's metrics."""
        for leaf in embeddings.tensors():
            leaf.requires_grad_(True)
        paths, fused = (
            split_slots(kind, batch.pairs, batch.negatives)
            for kind in (embeddings.paths, fuse(self.fusion, embeddings.paths, embeddings.fusion_logits))
        )
        identities = PairIdentities(batch.target_ids, batch.negative_ids, batch.valid, batch.negative_valid)
        terms, metrics = self.objective.terms(paths, fused, identities, embeddings.log_temperature, step - 1)
        # A sum over all ranks, so they decide alike.
        if not math.isfinite(float(metrics["loss"])):
            return None, {name: float(value) for name, value in metrics.items()}
        gradients = gradients_of(terms.contrast, embeddings)
        if terms.diversity is not None:
            contrast, diversity = gradients, gradients_of(terms.diversity, embeddings)
            metrics["diversity_gradient_share"] = gradient_share(diversity.paths, contrast.paths)
            gradients = Embeddings(*(a + b for a, b in zip(contrast.tensors(), diversity.tensors(), strict=True)))
        metrics |= self.objective.learn(paths.query, paths.target, batch.valid)
        return gradients, {name: float(value) for name, value in metrics.items()}

    def surrogates(
        self, passes: list[Pass], kept: Embeddings | None, gradients: Embeddings, step: int
    ) -> Iterator[Tensor]:
        """For each pass a scalar whose gradient is the share of the loss's gradient that flows through the pass."""
        for part in passes:
            output = self.embed(part, step, with_graph=True) if kept is None else kept
            yield surrogate(output, part, gradients, len(passes))


def gradients_of(term: Tensor, embeddings: Embeddings) -> Embeddings:
    """The gradient of a scalar; 0 where it does not depend on something."""
    found = torch.autograd.grad(
        term, embeddings.tensors(), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return Embeddings(*found)


def gradient_share(diversity: Tensor, contrast: Tensor) -> Tensor:
    """Norm of the diversity term's gradient over the norm of what is learned by contrast, over all ranks' embeddings;
    alike on every rank."""
    squares = all_reduce_sum(torch.stack([diversity.square().sum(), contrast.square().sum()]))
    return (squares[0] / squares[1].clamp_min(1e-30)).sqrt()


def was_skipped(metrics: dict[str, float]) -> bool:
    """Whether a step with these metrics, which are alike on every rank, updated nothing."""
    return not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]))


def group_paths(paths: int, at_most: int | None) -> list[list[int]]:
    """The numbers of the K paths in groups of ``at_most``, in one if that is None."""
    size = min(at_most or paths, paths)
    return [list(range(start, min(start + size, paths))) for start in range(0, paths, size)]


def chunk_tokens_per_path(train: TrainSection, paths: int) -> int | None:
    """Tokens of one path that a chunk may hold, so that a pass by a group of paths keeps to ``train.chunk_tokens``."""
    return train.chunk_tokens and max(1, train.chunk_tokens // min(train.chunk_paths or paths, paths))


def split_slots(embeddings: Tensor, pairs: int, negatives: int) -> PairEmbeddings:
    """``[(2 + M) B, ...]`` as queries ``[B, ...]``, targets ``[B, ...]`` and negatives ``[B, M, ...]``."""
    query, target, rest = embeddings.split([pairs, pairs, pairs * negatives])
    return PairEmbeddings(query, target, rest.unflatten(0, (pairs, negatives)))


def surrogate(output: Embeddings, part: Pass, gradients: Embeddings, passes: int) -> Tensor:
    """See ``Stepper.surrogates``. What stands beside the embeddings gets an equal part of its gradient from every pass,
    and a filler takes part times zero, so that every pass's graph reaches every parameter and ZeRO reduces alike for
    each."""
    own, fillers = output.paths.tensor_split([len(part.chunk.slots)])
    loss = (own * gradients.paths[part.place(output.paths.device)]).sum() + 0 * fillers.sum()
    beside = output.log_temperature * gradients.log_temperature + (output.fusion_logits * gradients.fusion_logits).sum()
    return loss + beside / passes
