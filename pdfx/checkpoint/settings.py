"""What changed in the settings between a checkpoint and whatever takes it up: nothing that decides an embedding may
change, and each other change is reported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pdfx.checkpoint.directory import Checkpoint
from pdfx.config import Config, dump_config
from pdfx.config.recipe_file import parse_yaml, read_recipe
from pdfx.config.run_files import CONFIG
from pdfx.errors import UserError
from pdfx.host.urls import without_secrets

DECISIVE = ("inputs.", "model.")
"""Sections that decide what an embedding is."""
FREE = {
    *("model.path", "model.revision", "model.modules", "model.trust_remote_code"),
    *("model.attention", "model.cache_vision", "model.cache_vision_gigabytes", "model.gradient_checkpointing"),
    *("model.prefix.init", "model.prefix.init_std", "model.prefix.learning_rate", "model.lora.dropout"),
}
"""Their exceptions: places, whose content is compared instead; how something is computed; and what only training
needs."""
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
