"""The weights of a backbone as it was before training, read in pieces from its files if these allow it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from pdfx.config import ModelSection
from pdfx.errors import UserError, in_short
from pdfx.host.reading import read_json
from pdfx.host.tensor_files import TensorFile
from pdfx.model.custom_code import model_file
from pdfx.model.loading import load_whole

Reader = Callable[[int, int], Tensor]
"""Gives ``count`` elements from ``start`` on of a flattened weight, in the type it is stored in."""


def open_backbone(model: ModelSection, backbone: PreTrainedModel) -> dict[str, Reader]:
    """The weights of a recipe's backbone by their names in its module; loaded as a whole if its files must be converted
    while they are read.

    Args:
        backbone: the same without weights, whose class decides what its weights are called.

    Raises:
        UserError: they cannot be read.
    """
    try:
        files = safetensors_files(model)
        places = files and weight_places([TensorFile(path) for path in files], backbone)
        if places:
            return {name: partial(file.read, stored) for name, (file, stored) in places.items()}
        hub: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
        whole, _ = load_whole(AutoModel.from_pretrained, model.path, dtype=torch.float32, **hub)
        return {name: partial(weight.detach().reshape(-1).narrow, 0) for name, weight in whole.state_dict().items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"The weights of model.path '{model.path}' cannot be read: {in_short(error)}") from error


def safetensors_files(model: ModelSection) -> list[Path]:
    """The backbone's weight files, in its directory or in the hub's cache; none if it has other kinds of files."""
    try:
        return [model_file(model.path, SAFE_WEIGHTS_NAME, model.revision)]
    except OSError:
        pass
    try:
        index = model_file(model.path, SAFE_WEIGHTS_INDEX_NAME, model.revision)
    except OSError:
        return []
    names = sorted(set(read_json(index)["weight_map"].values()))
    return [model_file(model.path, name, model.revision) for name in names]


def weight_places(files: list[TensorFile], backbone: PreTrainedModel) -> dict[str, tuple[TensorFile, str]] | None:
    """Where each weight lies, by transformers' rules for older names; None if a weight itself must be changed."""
    rules = get_model_conversion_mapping(backbone)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    own, places = backbone.state_dict(), {}
    for file in files:
        for stored in file.entries:
            name, converted = rename_source_key(stored, renamings, converters, backbone.base_model_prefix, own)
            if converted is not None:
                return None
            places[name] = file, stored
    return places
