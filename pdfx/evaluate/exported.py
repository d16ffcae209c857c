"""Evaluating an exported model on shards, in one process or over the ranks of a torchrun launch."""

from __future__ import annotations

from pathlib import Path

from pdfx.config import EvaluateSection
from pdfx.data import ShardedDataset
from pdfx.evaluate.retrieval import EmbedInputs, Progress, evaluate_shards
from pdfx.exports import load_export
from pdfx.model import ParallelEmbedder
from pdfx.ranks import launched_ranks


def evaluate_export(
    model: Path, shards: Path, settings: EvaluateSection, num_workers: int = 0, trust_remote_code: bool = False, progress: Progress | None = None
) -> dict[str, float] | None:
    """The metrics of ``retrieval.evaluate_shards``; None on ranks other than 0.

    Raises:
        UserError: the model or the shards cannot be used.
    """
    dataset = ShardedDataset(shards)
    with launched_ranks() as ranks:
        embedder = load_export(model, ranks.device, trust_remote_code)
        first = ranks.rank == 0
        metrics = evaluate_shards(
            embed_on(embedder), dataset, embedder.processor, settings, ranks.rank, ranks.world_size, num_workers, progress if first else None
        )
    return metrics if first else None


def embed_on(embedder: ParallelEmbedder) -> EmbedInputs:
    """A function that moves inputs to the embedder's device and embeds them."""
    return lambda inputs: embedder({name: tensor.to(embedder.device) for name, tensor in inputs.items()})
