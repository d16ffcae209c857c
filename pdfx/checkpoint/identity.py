"""What must be equal in a checkpoint and in the run that resumes from it."""

from __future__ import annotations

import json

from pdfx.config import Config
from pdfx.model import ParallelEmbedder

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
