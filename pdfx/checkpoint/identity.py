"""What must be equal in a checkpoint and in whatever resumes from it, and which other settings changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pdfx.checkpoint.directory import Checkpoint
from pdfx.config import Config, dump_config
from pdfx.config.recipe_file import parse_yaml, read_recipe
from pdfx.config.run_files import CONFIG
from pdfx.errors import UserError
from pdfx.host.urls import without_secrets
from pdfx.model import InputProcessor, ParallelEmbedder

MODEL = "model"
"""Key of ``Checkpoint.state`` for ``identity``."""
PROCESSOR = "processor"
"""Key of ``Checkpoint.state`` for ``processed_sample``."""

IRRELEVANT = {
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "architectures",
    "auto_map",
    "inputs",
    "attention",
    "_attn_implementation",
}
"""Fields of a model's configuration that do not decide which parameters it has."""


def identity(embedder: ParallelEmbedder, config: Config) -> dict:
    """What must be equal in a checkpoint and in the run that takes it up: the architecture, and what is trained."""
    model = config.model
    lora = model.lora.model_dump(exclude={"dropout"}) if model.lora else "none"
    tree = {
        "embedder": architecture(embedder.config.to_dict()),
        "lora": lora,
        "train_vision": model.train_vision,
        "train_projector": model.train_projector,
        "learn_temperature": config.objective.learn_temperature,
        "bf16": config.train.bf16,
    }
    # Through JSON, so that it compares equal to what was read back from a file.
    return json.loads(json.dumps(tree))


def architecture(settings: dict) -> dict:
    """A model's configuration without what does not decide its parameters."""
    return {
        str(name): architecture(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name not in IRRELEVANT
    }


def processed_sample(processor: InputProcessor) -> dict[str, str]:
    """What a processor makes of a text and a picture, in figures that releases of its libraries agree on."""
    rows, columns = np.indices((84, 112))
    picture = Image.fromarray(np.stack([rows * 3, columns * 2, rows + columns], axis=-1).astype(np.uint8))
    inputs, _ = processor([{"text": "Größe 42: two cats, 两只猫", "images": [picture]}], ["query"])
    pixels = inputs["pixel_values"].double()
    figures = [round(value.item(), 2) for value in (pixels.mean(), pixels.std(), pixels.min(), pixels.max())]
    return {
        "tokens": hashlib.sha256(str(inputs["input_ids"].tolist()).encode()).hexdigest(),
        "pixels": str([*pixels.shape, *figures]),
    }


def check_same_processor(checkpoint: Checkpoint, processed: dict[str, str], model_path: str) -> None:
    """Raises UserError if the processor gives other inputs than the one that the checkpoint was trained with."""
    # Older checkpoints have no sample.
    if checkpoint.state().get(PROCESSOR, processed) != processed:
        raise UserError(
            f"The processor of model.path '{model_path}' makes other inputs of the same text and picture than that "
            f"which {checkpoint.path} was trained with; give the same tokenizer and image processor."
        )


FROZEN = "frozen_weights"
"""Key of ``Checkpoint.state``."""
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_sum(values: Tensor) -> int:
    """The sum of the values' bits, read as integers: exact in any order; nearly any change of a weight changes it."""
    return int(values.detach().reshape(-1).view(INTEGERS[values.element_size()]).sum(dtype=torch.int64))


def fingerprint(parts: Iterable[dict[str, int]]) -> str:
    """Of the sums by the weights' names in the training module; those of a weight's parts are added up."""
    totals: dict[str, int] = {}
    for part in parts:
        for name, value in part.items():
            totals[name] = (totals.get(name, 0) + value) % 2**64
    return hashlib.sha256("".join(f"{name} {totals[name]}\n" for name in sorted(totals)).encode()).hexdigest()


def check_same_frozen_weights(checkpoint: Checkpoint, frozen: str, model_path: str) -> None:
    """Raises UserError if the weights that the checkpoint does not hold are not those it was trained on."""
    # Older checkpoints have no fingerprint.
    if checkpoint.state().get(FROZEN, frozen) != frozen:
        raise UserError(
            f"The frozen weights of model.path '{model_path}' are not those that {checkpoint.path} was trained on; "
            "give the same backbone."
        )


DECISIVE = ("inputs.", "model.")
"""Sections that decide what an embedding is."""
FREE = {
    *("model.path", "model.revision", "model.modules", "model.trust_remote_code"),
    *("model.attention", "model.cache_vision", "model.cache_vision_gigabytes", "model.cache_vision_file"),
    "model.gradient_checkpointing",
    *("model.prefix.init", "model.prefix.init_std", "model.prefix.learning_rate", "model.lora.dropout"),
}
"""Their exceptions: places, whose content is compared instead; ways to compute; and what only training needs."""
EVIDENT = {"train.output_dir", "train.resume", "train.resume_elastic"}
"""Not reported: they say that a run resumes, and from which checkpoint."""


def settings_changes(checkpoint: Checkpoint, config: Config) -> list[str]:
    """A sentence for each setting that is another than in the checkpoint.

    Raises:
        UserError: one of them decides what an embedding is.
    """
    messages = []
    for key, old, new in changes(read_recipe(checkpoint.file(CONFIG)), parse_yaml(dump_config(config))):
        if key.startswith(DECISIVE) and key not in FREE:
            change = f"{key} is '{shown(new)}' and was '{shown(old)}' up to {checkpoint.path}"
            raise UserError(f"{change}, which changes every embedding; set it back, or start a new run.")
        if key not in EVIDENT:
            messages.append(f"{key} is {shown(new)} from here on; it was {shown(old)} up to the checkpoint.")
    return messages


def changes(old: dict, new: dict, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Key, old and new value of all settings that both know and that differ."""
    for name in [name for name in new if name in old]:
        if isinstance(old[name], dict) and isinstance(new[name], dict):
            yield from changes(old[name], new[name], f"{prefix}{name}.")
        elif old[name] != new[name]:
            yield f"{prefix}{name}", old[name], new[name]


def shown(value: Any) -> str:
    """A value for a message; of URLs, without what is secret."""
    if isinstance(value, list):
        return f"[{', '.join(shown(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {shown(item)}' for name, item in value.items() if item is not None)}}}"
    return "null" if value is None else without_secrets(value) if isinstance(value, str) else str(value)
