"""LoRA as a PEFT adapter: the export holds what was trained, and the backbone's name."""

from __future__ import annotations

import copy
import re
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig

from pdfx.checkpoint.directory import Checkpoint
from pdfx.config import Config, LoraSection
from pdfx.convert.documents import write_documents
from pdfx.convert.weights import Weight, WeightSource, write_shard
from pdfx.embedder.lora import remove_adapters
from pdfx.errors import UserError
from pdfx.host.files import FileRecord
from pdfx.host.tensor_files import Entry
from pdfx.model.loading import ADAPTER_FOLDER, TRAINED_WEIGHTS


def write_adapter(
    weights: WeightSource, directory: Path, config: Config, source: Checkpoint, dtype: torch.dtype
) -> dict[str, FileRecord]:
    """Write an export whose backbone's weights are those of ``model.path``: prefixes, fusion and whatever else was
    trained, and in a folder of its own the adapter as PEFT reads it.

    Returns:
        What each file of weights is, by its name.

    Raises:
        UserError: the run trained without LoRA.
    """
    lora = config.model.lora
    if lora is None:
        raise UserError(
            "The run trained without LoRA (model.lora is null), so there is no adapter; convert it without --adapter."
        )
    embedder = remove_adapters(copy.deepcopy(weights.embedder))
    embedder.config.base_model = {"path": base_path(config), "revision": config.model.revision}
    write_documents(embedder, directory, config, source, dtype)
    trained = [name for name in weights.shapes if name in weights.trained]
    records = {
        TRAINED_WEIGHTS: write_shard(
            directory / TRAINED_WEIGHTS,
            [weight_of(weights, name, name, dtype) for name in trained if "lora_" not in name],
        )
    }
    folder = directory / ADAPTER_FOLDER
    folder.mkdir()
    names = [(name, exported) for name in trained if "lora_" in name for exported in peft_names(name)]
    of_adapter = [weight_of(weights, name, exported, dtype) for name, exported in names]
    records[f"{ADAPTER_FOLDER}/adapter_model.safetensors"] = write_shard(
        folder / "adapter_model.safetensors", of_adapter
    )
    peft_config(lora, embedder.family.decoder, config).save_pretrained(str(folder))
    return records


def base_path(config: Config) -> str:
    """The backbone's name in an export: a hub name as it is, a directory as an absolute path."""
    path = Path(config.model.path)
    return str(path.resolve()) if path.is_dir() else config.model.path


def weight_of(weights: WeightSource, name: str, exported: str, dtype: torch.dtype) -> Weight:
    return Weight(Entry(exported, dtype, weights.shapes[name]), partial(weights.pieces, name, dtype))


def peft_names(name: str) -> tuple[str, str]:
    """What PEFT calls a weight of the adapter ``default`` in a file: on the backbone, and on the class with a head for
    text around it.

    PEFT looks for its own name and leaves others alone, so a file with both serves both classes.
    """
    relative = (
        name.removeprefix("backbone.")
        .replace(".default", "")
        .replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
    )
    return f"base_model.model.{relative}", f"base_model.model.model.{relative}"


def peft_config(lora: LoraSection, decoder: str, config: Config) -> LoraConfig:
    """The adapter's configuration, which targets the decoder only: a vision tower may have modules of these names."""
    targets = "|".join(re.escape(target) for target in lora.targets)
    return LoraConfig(
        base_model_name_or_path=base_path(config),
        revision=config.model.revision,
        task_type="FEATURE_EXTRACTION",
        inference_mode=True,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        bias="none",
        # With or without the head for text that AutoModelForImageTextToText puts around the backbone.
        target_modules=rf"(model\.)?{re.escape(decoder)}\.(.*\.)?({targets})",
    )
