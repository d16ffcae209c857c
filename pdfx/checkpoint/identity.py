"""What must be equal in a checkpoint and in the run that resumes from it."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from PIL import Image

from pdfx.checkpoint.directory import Checkpoint
from pdfx.config import Config
from pdfx.errors import UserError
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
