"""Everything of an export but its weights: configuration, remote code, processor, the run's record, the model card."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from jinja2 import Environment, PackageLoader
from transformers import AutoProcessor
from transformers.utils import SAFE_WEIGHTS_NAME

import pdfx
from pdfx.checkpoint.directory import Checkpoint
from pdfx.config import Config, shown_settings
from pdfx.errors import UserError, in_short
from pdfx.model import ParallelEmbedder


def write_documents(embedder: ParallelEmbedder, directory: Path, config: Config, source: Checkpoint, dtype: torch.dtype) -> None:
    """Write them into a new directory.

    Args:
        embedder: without adapters; its weights are not looked at.
        dtype: of the weights.

    Raises:
        UserError: the backbone has no processor, or one of its own modules has the name of another file.
    """
    model = config.model
    try:
        embedder.attach_processor(AutoProcessor.from_pretrained(model.path, revision=model.revision, trust_remote_code=model.trust_remote_code))
    except (OSError, ValueError) as error:
        raise UserError(f"The processor of model.path '{model.path}' cannot be loaded: {in_short(error)}") from error
    embedder.to(dtype)
    try:
        embedder.save_pretrained(directory, state_dict={})
    except ValueError as error:
        raise UserError(str(error)) from error
    # An empty one; the real weights are written in pieces.
    (directory / SAFE_WEIGHTS_NAME).unlink(missing_ok=True)
    record = {"pdfx": pdfx.__version__, "step": source.step, "config": shown_settings(config)}
    (directory / "pdfx_export.json").write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")
    (directory / "README.md").write_text(model_card(embedder, directory.name, config, source, dtype), encoding="utf-8")


def model_card(embedder: ParallelEmbedder, name: str, config: Config, source: Checkpoint, dtype: torch.dtype) -> str:
    """The export's README."""
    template = Environment(loader=PackageLoader("pdfx", "."), autoescape=False, trim_blocks=True, lstrip_blocks=True).get_template("model_card.md.j2")
    dims = config.model.matryoshka_dims
    return template.render(
        name=name,
        base_model=config.model.path,
        adapter=embedder.config.base_model is not None,
        paths=embedder.config.paths,
        dimension=embedder.config.hidden_size,
        fused=embedder.config.fused_size,
        version=pdfx.__version__,
        step=source.step,
        dtype=str(dtype).removeprefix("torch."),
        matryoshka=", ".join(map(str, dims)),
        matryoshka_first=dims[0] if dims else None,
    )
