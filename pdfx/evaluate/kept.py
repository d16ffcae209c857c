"""The embeddings of an evaluation as files, from which figures can be computed later and without the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save

from pdfx.data import Candidates
from pdfx.evaluate.embedding import EmbeddedItems
from pdfx.host.files import write_atomically

FOLDER = "evaluation"
"""In a run's directory; see ``evaluate.keep_embeddings``."""


def kept_file(run: Path, data_set: str) -> Path:
    """Where a run keeps the embeddings of a data set, whose name may hold slashes."""
    return run / FOLDER / f"{data_set.replace('/', '_')}.safetensors"


def write_items(path: Path, queries: EmbeddedItems, targets: EmbeddedItems) -> None:
    """Write both sides of a data set into one safetensors file."""
    tensors: dict[str, torch.Tensor] = {}
    for side, items in (("queries", queries), ("targets", targets)):
        own = {"paths": items.paths, "fused": items.fused, "ids": items.ids, "samples": torch.from_numpy(items.samples)}
        if items.candidates is not None:
            parts = {"rows": items.candidates.rows, "starts": items.candidates.starts}
            own |= {f"candidates.{name}": torch.from_numpy(part) for name, part in parts.items()}
        tensors |= {f"{side}.{name}": tensor.detach().cpu().contiguous() for name, tensor in own.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as stream:
        stream.write(save(tensors))


def read_items(path: Path) -> tuple[EmbeddedItems, EmbeddedItems]:
    """Queries and targets as ``write_items`` wrote them. Raises FileNotFoundError."""
    tensors = load_file(path)

    def side(name: str) -> EmbeddedItems:
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        arrays: list[np.ndarray] = [
            own[f"candidates.{key}"].numpy() for key in ("rows", "starts") if "candidates.rows" in own
        ]
        candidates = Candidates(*arrays) if arrays else None
        return EmbeddedItems(own["paths"], own["fused"], own["ids"], own["samples"].numpy(), candidates)

    return side("queries"), side("targets")
