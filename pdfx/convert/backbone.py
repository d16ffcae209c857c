"""The weights of a backbone as it was before training, read in pieces from its files if these allow it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

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


class BackboneWeights(Protocol):
    """Weights by their names in the backbone's module."""

    def names(self) -> set[str]: ...

    def read(self, name: str, start: int, count: int) -> Tensor:
        """``count`` elements from ``start`` on of a flattened weight, in the type it is stored in."""


class BackboneFiles:
    """Weights in safetensors files, which may call them by older names.

    Args:
        places: the file and the name in it of each weight.
    """

    def __init__(self, places: dict[str, tuple[TensorFile, str]]):
        self.places = places

    def names(self) -> set[str]:
        return set(self.places)

    def read(self, name: str, start: int, count: int) -> Tensor:
        file, stored = self.places[name]
        return file.read(stored, start, count)


class LoadedBackbone:
    """Weights of a backbone that transformers loaded as a whole, for files that must be converted while they are
    read."""

    def __init__(self, backbone: PreTrainedModel):
        self.weights = {name: weight.detach().reshape(-1) for name, weight in backbone.state_dict().items()}

    def names(self) -> set[str]:
        return set(self.weights)

    def read(self, name: str, start: int, count: int) -> Tensor:
        return self.weights[name].narrow(0, start, count)


def open_backbone(model: ModelSection, backbone: PreTrainedModel) -> BackboneWeights:
    """The weights of a recipe's backbone.

    Args:
        backbone: the same without weights, whose class decides what its weights are called.

    Raises:
        UserError: they cannot be read.
    """
    try:
        files = safetensors_files(model)
        places = files and weight_places([TensorFile(path) for path in files], backbone)
        if places:
            return BackboneFiles(places)
        hub: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
        return LoadedBackbone(load_whole(AutoModel.from_pretrained, model.path, dtype=torch.float32, **hub)[0])
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
    """Where each weight lies, by transformers' own rules for older names; None if these rules change a weight
    itself."""
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
