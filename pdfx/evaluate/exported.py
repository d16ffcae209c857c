"""Evaluating an exported model on shards, in one process or over the ranks of a torchrun launch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pdfx.config import EvaluateSection
from pdfx.distributed.launched import launched_ranks
from pdfx.embedder.exports import opened_export
from pdfx.evaluate.data_sets import Counters, Results, evaluate_data_sets, open_data_sets
from pdfx.evaluate.embedding import EmbedInputs, Say
from pdfx.model import ParallelEmbedder


def evaluate_export(
    model: Path,
    shards: Sequence[str | Path],
    settings: EvaluateSection,
    num_workers: int = 0,
    trust_remote_code: bool = False,
    counters: Counters | None = None,
    say: Say | None = None,
) -> Results | None:
    """The metrics of each directory of shards by its name; None on ranks other than 0.

    Raises:
        UserError: the model or the shards cannot be used.
    """
    data_sets = open_data_sets(shards)
    with (
        launched_ranks() as ranks,
        opened_export(model, ranks.device, trust_remote_code, verify=ranks.rank == 0) as embedder,
    ):
        first = ranks.rank == 0
        told = (counters, say) if first else (None, None)
        results = evaluate_data_sets(
            embed_on(embedder),
            data_sets,
            embedder.processor,
            settings,
            ranks.rank,
            ranks.world_size,
            num_workers,
            *told,
        )
    return results if first else None


def embed_on(embedder: ParallelEmbedder) -> EmbedInputs:
    """A function that moves inputs to the embedder's device and embeds them."""
    return lambda inputs: embedder({name: tensor.to(embedder.device) for name, tensor in inputs.items()})
