"""From a recipe's sections to an embedder ready for training: backbone, prefixes, adapters, what is trained, caches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from transformers import AutoModel, PretrainedConfig

from pdfx.config import Config, ModelSection
from pdfx.embedder.lora import apply_lora, set_trainable
from pdfx.errors import UserError, in_short
from pdfx.host.tensor_files import require_sound_files
from pdfx.model import ParallelEmbedder, cache_vision_tower
from pdfx.model.configuration import new_config
from pdfx.model.custom_code import run_module_file
from pdfx.model.loading import backbone_config as read_config
from pdfx.model.prefixes import Gathered


def build_embedder(
    config: Config, dtype: torch.dtype = torch.float32, gathered: Gathered = nullcontext
) -> ParallelEmbedder:
    """The embedder of a recipe, in training mode, with LoRA applied, the right parameters frozen and its processor
    attached.

    Args:
        gathered: makes parameters whole that are loaded into shards.

    Raises:
        UserError: the backbone cannot be loaded or a setting does not fit it.
    """
    model = config.model
    with using_backbone(model) as hub:
        embedder = ParallelEmbedder.from_backbone(
            model.path, seed=config.train.seed, dtype=dtype, gathered=gathered, **hub, **embedder_settings(config)
        )
    prepare(embedder, model)
    if model.cache_vision:
        try:
            cache_vision_tower(embedder, model.cache_vision_gigabytes, gathered, model.cache_vision_file)
        except ValueError as error:
            raise UserError(f"model.cache_vision: {error}") from None
    return embedder


def build_on_meta(config: Config) -> ParallelEmbedder:
    """The same embedder without weights or processor, on the meta device, for tables and checks of a recipe."""
    model, own = config.model, backbone_config(config)
    with using_backbone(model), torch.device("meta"):
        backbone = AutoModel.from_config(own, trust_remote_code=model.trust_remote_code)
        embedder = ParallelEmbedder(new_config(backbone.config, **embedder_settings(config)), backbone)
        return prepare(embedder, model)


def backbone_config(config: Config) -> PretrainedConfig:
    """The backbone's own configuration. Raises UserError if it cannot be read, or is not of a supported type."""
    with using_backbone(config.model) as hub:
        return read_config(config.model.path, **hub)


@contextmanager
def using_backbone(model: ModelSection) -> Iterator[dict]:
    """A block in which transformers reads ``model.path``; gives the arguments for it. The backbone's own classes are
    registered.

    ``model.path``, if it is a directory, and ``model.modules`` become absolute, so that a run's record of them holds in
    any folder.

    Raises:
        UserError: in one sentence, why the backbone cannot be used.
    """
    here = f"does not exist here (relative to {Path.cwd()})"
    if found := Path(model.path).is_dir():
        model.path = str(Path(model.path).resolve())
    elif not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model.path):
        raise UserError(
            f"model.path '{model.path}' {here}; give the directory of a backbone, or its name on the Hugging Face hub."
        )
    require_sound_files(model.path)
    register_modules(model)
    model.modules = [str(Path(path).resolve()) for path in model.modules]
    try:
        yield {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    except (OSError, ValueError, KeyError, ImportError) as error:
        if found or not isinstance(error, OSError):
            raise UserError(f"model.path '{model.path}' cannot be used as a backbone: {in_short(error)}") from error
        raise UserError(
            f"model.path '{model.path}' {here}, and it cannot be read from the Hugging Face hub or its cache: "
            f"{in_short(error)}"
        ) from error


def backbone_width(config: Config) -> int:
    """Dimensions of the backbone's hidden states."""
    return backbone_config(config).get_text_config().hidden_size


def embedder_settings(config: Config) -> dict:
    """The recipe's settings as ``ParallelEmbedder.from_backbone`` takes them."""
    model, prefix = config.model, config.model.prefix
    return {
        "inputs": config.inputs.model_dump(),
        "paths": model.paths,
        "prefix_length": prefix.length,
        "prefix_layers": prefix.layers if prefix.length else [],
        "prefix_init": prefix.init,
        "prefix_init_std": prefix.init_std,
        "pooling": model.pooling,
        "fusion": model.fusion,
        "matryoshka_dims": model.matryoshka_dims,
        "attention": model.attention,
        "modules": [Path(path).name for path in model.modules],
    }


def prepare(embedder: ParallelEmbedder, model: ModelSection) -> ParallelEmbedder:
    """Apply LoRA, freeze what is not trained, and switch on activation checkpointing and training mode."""
    wrong = [dim for dim in model.matryoshka_dims if not 0 < dim < embedder.config.hidden_size]
    if wrong:
        raise UserError(
            f"model.matryoshka_dims has {wrong}, but they must lie between 1 and {embedder.config.hidden_size - 1}, "
            "below the model's dimension."
        )
    if model.lora is not None:
        apply_lora(embedder, model.lora)
    set_trainable(embedder, model)
    embedder.module_files = [Path(path) for path in model.modules]
    if model.gradient_checkpointing:
        # The non-reentrant form also works if the layer's input needs no gradient, as with LoRA on a frozen token
        # embedding.
        backbone = embedder.backbone
        enable = (
            getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
        )  # Its name before transformers 5.23.
        enable({"use_reentrant": False})
    embedder.train()
    return embedder


def register_modules(model: ModelSection) -> None:
    """Run the files that register a backbone's classes. Raises UserError if one is missing or they are not trusted."""
    if model.modules and not model.trust_remote_code:
        raise UserError(
            f"model.modules names {', '.join(model.modules)}, Python code that would run here; read it, then allow "
            "it with model.trust_remote_code=true, "
            "or for 'pdfx convert' with --trust-remote-code."
        )
    for path in model.modules:
        if not Path(path).is_file():
            raise UserError(
                f"model.modules names {path}, which is not a file here (relative to {Path.cwd()}); give a Python "
                "file that registers classes."
            )
        run_module_file(Path(path))
