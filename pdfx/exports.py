"""Loading an exported model directory for use, with mistakes told in one sentence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from pdfx.errors import UserError, in_short
from pdfx.model_files import require_sound_files
from pdfx.reading import read_json

if TYPE_CHECKING:
    from pdfx.model import InputProcessor, ParallelEmbedder

MODEL_TYPE = "pdfx_parallel_embedder"


def load_export(directory: Path, device: torch.device | str = "cpu", trust_remote_code: bool = False) -> ParallelEmbedder:
    """The model of an export in evaluation mode, its ``processor`` set, on ``device``.

    Args:
        trust_remote_code: run the backbone's own code that travels in some exports.

    Raises:
        UserError: the directory is no export of pdfx, or its files are missing or damaged.
    """
    # Kept until here so that a wrong directory is refused before transformers is imported.
    check_export(directory)
    from transformers.utils import logging

    from pdfx.model import ParallelEmbedder

    logging.disable_progress_bar()
    try:
        model = ParallelEmbedder.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise UserError(f"The model in {directory} cannot be loaded: {in_short(error)}") from error
    return model.eval().to(device)


def check_export(directory: Path) -> None:
    """Raises UserError where ``directory`` is not what ``pdfx convert`` writes."""
    cure = "Give a directory that 'pdfx convert' wrote."
    if not directory.is_dir():
        raise UserError(f"There is no directory {directory}. {cure}")
    require_sound_files(directory)
    try:
        config = read_json(directory / "config.json")
    except FileNotFoundError:
        raise UserError(f"{directory} is not an exported model: it holds no config.json. {cure}") from None
    except ValueError:
        raise UserError(f"{directory / 'config.json'} is not valid JSON. {cure}") from None
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != MODEL_TYPE:
        raise UserError(f"{directory} is not an export of pdfx: its config.json says the model type {model_type!r}, not {MODEL_TYPE!r}. {cure}")


def load_processor(directory: Path) -> InputProcessor:
    """The processor of an export, or of a backbone's directory with the default settings. No weights are read, and no code that lies there is run.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoProcessor

    from pdfx.model import InputProcessor
    from pdfx.model.families import family_of

    try:
        config = read_json(directory / "config.json")
        backbone = config.get("backbone", config)
        family = family_of(SimpleNamespace(model_type=backbone.get("model_type")))
        return InputProcessor(AutoProcessor.from_pretrained(directory, trust_remote_code=False), family, config.get("inputs") or {})
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"The processor in {directory} cannot be loaded: {' '.join(str(error).split())}") from error
