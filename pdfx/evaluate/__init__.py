"""Retrieval metrics of a model on shards, diversity of its paths, embeddings of a file of items, tables, HTML pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdfx.host import make_callable

if TYPE_CHECKING:
    from pdfx.config import EvaluateSection


def evaluate(
    model: str | Path,
    shards: str | Path | Sequence[str | Path],
    settings: EvaluateSection | None = None,
    num_workers: int = 0,
    trust_remote_code: bool = False,
) -> dict[str, Any] | None:
    """Measure retrieval with an exported model, as ``pdfx evaluate`` does. ``pdfx.evaluate(...)`` calls this.

    Args:
        model: a directory that ``pdfx.convert`` wrote.
        shards: one or several directories of shards, or their URLs; each is evaluated by itself.
        settings: batch size, the k of recall@k, and the share of samples that may be unusable.
        num_workers: processes that decode pictures.
        trust_remote_code: run code that the model brings.

    Returns:
        Metrics keyed ``DIRECTION/SCORE/METRIC``, such as ``query_to_target/fused/recall@10``; for several directories,
        ``data_sets`` and ``averages``. None on ranks other than 0 of a torchrun launch.

    Raises:
        UserError: the model or the shards cannot be used.

    >>> import pdfx
    >>> metrics = pdfx.evaluate("converted", "shards")
    >>> metrics["queries"], metrics["targets"]
    (24, 24)
    >>> metrics["query_to_target/fused/recall@10"] >= metrics["query_to_target/fused/recall@1"]
    True
    """
    from pdfx.config import EvaluateSection
    from pdfx.evaluate.data_sets import evaluate_export, report_of

    paths = [shards] if isinstance(shards, (str, Path)) else shards
    results = evaluate_export(Path(model), paths, settings or EvaluateSection(), num_workers, trust_remote_code)
    return None if results is None else report_of(results)


make_callable(__name__, evaluate)
