"""One optimiser step by chunked backprop on the DeepSpeed engine.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv 2101.06983): the loss and its gradient are computed on
the embeddings of all chunks, then each chunk is embedded again with its graph and receives its part of that gradient. A single chunk keeps its graph and
is embedded once. Legend: B pairs on this rank, K paths, M hard negatives per pair, D and F dimensions of a path's and the fused embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import deepspeed
import torch
from torch import Tensor

from pdfx.data.batch import Batch, Chunk
from pdfx.errors import UserError
from pdfx.objective import Objective
from pdfx.train.cluster import World
from pdfx.train.schedule import derived_seed


@dataclass
class Embeddings:
    """The embeddings of n items, or of a whole batch in the order of its slots, and the temperature they were made with.

    Attributes:
        paths: ``[n, K, D]``, n = (2 + M) B for a batch.
        fused: ``[n, F]``.
        log_temperature: scalar.
    """

    paths: Tensor
    fused: Tensor
    log_temperature: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.paths, self.fused, self.log_temperature


class Stepper:
    """Makes optimiser steps.

    Dropout in a chunk depends on (seed, step, rank, chunk) alone: the second embedding of a chunk repeats the first exactly, and a resumed run repeats
    the uninterrupted one, without any random state being kept.

    Args:
        engine: wraps a ``TrainingModule``.
        objective: loss on embeddings.
        world: this run's ranks.
        seed: the run's seed.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine, objective: Objective, world: World, seed: int):
        self.engine, self.objective, self.world, self.seed = engine, objective, world, seed

    def __call__(self, batch: Batch, step: int) -> dict[str, float]:
        """Update the parameters by one batch.

        Args:
            batch: this rank's share, with the same number of chunks on every rank.
            step: the optimiser step, counted from 1.

        Returns:
            The objective's metrics and ``grad_norm``, the norm before clipping; alike on every rank.

        Raises:
            UserError: loss or gradient is not finite, or the loss is exactly 0.
        """
        batch = batch.to(self.world.device, non_blocking=True)
        keep = len(batch.chunks) == 1
        outputs = [self.embed(batch, number, step, with_graph=keep) for number in range(len(batch.chunks))]
        gradients, metrics = self.gradients(batch, gather_slots(batch, outputs), step)
        for number, chunk in enumerate(batch.chunks):
            output = outputs[number] if keep else self.embed(batch, number, step, with_graph=True)
            # Each chunk is reduced into the shards at once: unsharded gradients of several chunks never exist side by side.
            self.engine.set_gradient_accumulation_boundary(number == len(batch.chunks) - 1)
            self.engine.backward(surrogate(output, chunk, gradients, len(batch.chunks)))
        self.engine.step()
        metrics["grad_norm"] = float(self.engine.get_global_grad_norm())
        if not math.isfinite(metrics["grad_norm"]):
            raise UserError(f"The gradient's norm in step {step} is {metrics['grad_norm']}, though the loss was {metrics['loss']:.6g}; {CURE}")
        return metrics

    def embed(self, batch: Batch, number: int, step: int, with_graph: bool) -> Embeddings:
        """Embed one chunk in training mode, with the random numbers that belong to it."""
        torch.manual_seed(derived_seed(self.seed, "dropout", step, self.world.rank, number))
        with torch.set_grad_enabled(with_graph):
            return Embeddings(*self.engine(batch.chunks[number].inputs))

    def gradients(self, batch: Batch, embeddings: Embeddings, step: int) -> tuple[Embeddings, dict[str, float]]:
        """The gradient of the loss with respect to the whole batch's embeddings and the temperature, and the objective's metrics."""
        for leaf in embeddings.tensors():
            leaf.requires_grad_(True)
        pairs = batch.pairs
        query, target, negatives = split_slots(embeddings.paths, pairs, batch.negatives)
        fused = split_slots(embeddings.fused, pairs, batch.negatives)
        fit = self.objective.fit_variational(query, target, batch.valid)
        ids = (batch.target_ids, batch.negative_ids, batch.valid, batch.negative_valid)
        loss, metrics = self.objective(query, target, negatives, *fused, *ids, embeddings.log_temperature, step - 1)
        metrics = {name: float(value) for name, value in {**metrics, **fit}.items()}
        self.check_loss(float(loss.detach()), metrics["loss"], step)
        gradients = torch.autograd.grad(loss, embeddings.tensors(), allow_unused=True, materialize_grads=True)
        return Embeddings(*gradients), metrics

    def check_loss(self, own: float, overall: float, step: int) -> None:
        """Stop all ranks together where one of them has a loss that is no use, before any of them waits for the others' gradients."""
        if self.world.any(not math.isfinite(own)):
            raise UserError(f"The loss of step {step} is not finite (mean over ranks: {overall}); {CURE}")
        if overall == 0:
            raise UserError(
                f"The loss of step {step} is exactly 0, so nothing would be learned: no pair has a negative that counts, or all pairs are told apart "
                "perfectly; check that the data has distinct targets and that the global batch holds more than one pair."
            )


CURE = "resume from the last checkpoint with a lower train.learning_rate, a larger train.warmup_steps, or train.max_grad_norm set."


def gather_slots(batch: Batch, outputs: list[Embeddings]) -> Embeddings:
    """Leaves that hold every chunk's embeddings in the order of the batch's slots."""
    slots = torch.cat([chunk.slots for chunk in batch.chunks])
    places = torch.argsort(slots)

    def ordered(tensors: list[Tensor]) -> Tensor:
        return torch.cat([tensor.detach() for tensor in tensors]).index_select(0, places)

    return Embeddings(
        ordered([output.paths for output in outputs]), ordered([output.fused for output in outputs]), outputs[0].log_temperature.detach().clone()
    )


def split_slots(embeddings: Tensor, pairs: int, negatives: int) -> tuple[Tensor, Tensor, Tensor]:
    """``[(2 + M) B, ...]`` as queries ``[B, ...]``, targets ``[B, ...]`` and negatives ``[B, M, ...]``."""
    query, target, rest = embeddings.split([pairs, pairs, pairs * negatives])
    return query, target, rest.unflatten(0, (pairs, negatives))


def surrogate(output: Embeddings, chunk: Chunk, gradients: Embeddings, chunks: int) -> Tensor:
    """A scalar whose gradient in the parameters is the loss's share that flows through this chunk.

    The temperature's gradient is spread evenly, so that every chunk's graph reaches every parameter and ZeRO reduces alike for each.
    """
    paths = gradients.paths.index_select(0, chunk.slots)
    fused = gradients.fused.index_select(0, chunk.slots)
    loss = (output.paths * paths).sum() + (output.fused * fused).sum()
    return loss + output.log_temperature * gradients.log_temperature / chunks
