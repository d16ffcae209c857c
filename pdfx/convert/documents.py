"""Everything of an export but its weights: configuration, code, processor, model card, and its record."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from jinja2 import Environment, PackageLoader
from transformers import AutoProcessor
from transformers.utils import SAFE_WEIGHTS_NAME

import pdfx
from pdfx.checkpoint.directory import Checkpoint
from pdfx.config import Config, shown_settings
from pdfx.embedder.exports import RECORD, files_of
from pdfx.errors import UserError, in_short
from pdfx.host.files import FileRecord, read_record
from pdfx.model import ParallelEmbedder


def write_documents(
    embedder: ParallelEmbedder, directory: Path, config: Config, source: Checkpoint, dtype: torch.dtype
) -> None:
    """Write them into a new directory.

    Args:
        embedder: without adapters; its weights are not looked at.
        dtype: of the weights.

    Raises:
        UserError: the backbone has no processor, or one of its own modules has the name of another file.
    """
    model = config.model
    try:
        embedder.attach_processor(
            AutoProcessor.from_pretrained(
                model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
            )
        )
    except (OSError, ValueError) as error:
        raise UserError(f"The processor of model.path '{model.path}' cannot be loaded: {in_short(error)}") from error
    embedder.to(dtype)
    try:
        embedder.save_pretrained(directory, state_dict={})
    except ValueError as error:
        raise UserError(str(error)) from error
    # An empty one; the real weights are written in pieces.
    (directory / SAFE_WEIGHTS_NAME).unlink(missing_ok=True)
    (directory / "README.md").write_text(model_card(embedder, directory.name, config, source, dtype), encoding="utf-8")


def write_record(
    directory: Path, config: Config, source: Checkpoint, of_weights: dict[str, FileRecord], base: Path | None = None
) -> None:
    """Write down what a whole export was made from, and what each of its files is, so that a later change of one shows.

    Args:
        of_weights: the files that are known already, by name.
        base: where the weights lie that the export leaves there.
    """
    names = {*files_of(directory)} - of_weights.keys()
    # A name on the hub is not a folder.
    names |= (
        {str(path) for path in base.resolve().iterdir() if path.suffix in (".safetensors", ".bin")}
        if base and base.is_dir()
        else set()
    )
    others = {name: read_record(directory / name) for name in names}
    files = {name: asdict(record) for name, record in sorted({**others, **of_weights}.items())}
    record = {"pdfx": pdfx.__version__, "step": source.step, "config": shown_settings(config), "files": files}
    (directory / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")


def model_card(embedder: ParallelEmbedder, name: str, config: Config, source: Checkpoint, dtype: torch.dtype) -> str:
    """The export's README."""
    template = Environment(
        loader=PackageLoader("pdfx.convert", "."), autoescape=False, trim_blocks=True, lstrip_blocks=True
    ).get_template("model_card.md.j2")
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
