"""Whether a run that is resumed has the tokenizer and the image processor of its checkpoint: other files of theirs
would give other inputs in silence."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from pdfx.checkpoint.directory import Checkpoint
from pdfx.errors import UserError
from pdfx.model import InputProcessor

PROCESSOR = "processor"
"""Key of ``Checkpoint.state``."""


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
            f"which {checkpoint.path} was trained with; "
            "give the same tokenizer and image processor."
        )
