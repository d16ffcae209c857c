"""Every weight of an export: where its values come from (the checkpoint, the backbone's files, or both if LoRA is
merged), and the files it goes to."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from pdfx.checkpoint.directory import BUFFERS, PARAMETERS, Checkpoint
from pdfx.checkpoint.identity import bit_sum, check_same_frozen_weights, fingerprint
from pdfx.checkpoint.parameters import MASTER, SavedParameters
from pdfx.config import ModelSection
from pdfx.convert.backbone import Reader, open_backbone
from pdfx.embedder.lora import adapted_modules, merged_weight, remove_adapters
from pdfx.errors import UserError
from pdfx.host.files import FileRecord
from pdfx.host.tensor_files import Entry, TensorFile, write_tensors
from pdfx.model import ParallelEmbedder

BLOCK = 2**22
"""Elements that are read, converted and written at once."""
MODULE_PREFIX = "embedder."
"""What stands before an embedder's parameters in the training module."""
BASE = ".base_layer"
"""What PEFT puts into the names of an adapted module's own weights."""


@dataclass(frozen=True)
class Weight:
    """One weight of the export; ``pieces`` makes the flattened values, block after block."""

    entry: Entry
    pieces: Callable[[], Iterator[Tensor]]


class WeightSource:
    """The weights of a run's embedder at a checkpoint.

    Args:
        embedder: the recipe's, without weights, with its adapters.
        model: the recipe's.
        checkpoint: where the trained ones are.
        trained_as: the type that the run computed in.

    Raises:
        UserError: a trained weight is missing, unknown or of another shape, or the backbone's weights cannot be read.
    """

    def __init__(
        self,
        embedder: ParallelEmbedder,
        model: ModelSection,
        checkpoint: Checkpoint,
        trained_as: torch.dtype = torch.float32,
    ):
        self.embedder = embedder
        self.shapes = {name: tuple(weight.shape) for name, weight in embedder.state_dict().items()}
        self.saved = SavedParameters(checkpoint.files(PARAMETERS))
        self.buffers = TensorFile(checkpoint.file(BUFFERS))
        self.trained = {
            name.removeprefix(MODULE_PREFIX) for name in self.saved.shapes if name.startswith(MODULE_PREFIX)
        }
        self.check(checkpoint)
        self.backbone = self.open_backbone(model)
        self.frozen = {name for name, parameter in embedder.named_parameters() if not parameter.requires_grad}
        self.trained_as = trained_as
        self.sums: dict[str, int] = {}

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises UserError if the checkpoint's trained parameters are not the embedder's."""
        wanted = {
            name
            for name, parameter in self.embedder.named_parameters()
            if parameter.requires_grad and parameter.numel()
        }
        misfit = {
            name for name in wanted & self.trained if self.saved.shapes[MODULE_PREFIX + name] != self.shapes[name]
        }
        for problem, names in {
            "lacks": wanted - self.trained,
            "has unknown": self.trained - wanted,
            "has wrongly shaped": misfit,
        }.items():
            if names:
                first = sorted(names)[0]
                raise UserError(
                    f"{checkpoint.path} {problem} {len(names)} weights, {first} among them; it does not belong to "
                    "the configuration of this run."
                )

    def open_backbone(self, model: ModelSection) -> dict[str, Reader]:
        """The backbone's weights; none if all were trained. Raises UserError if one is missing."""
        frozen = {self.in_backbone(name) for name in self.shapes if not self.is_known(name)}
        if not frozen:
            return {}
        backbone = open_backbone(model, remove_adapters(copy.deepcopy(self.embedder)).backbone)
        missing = sorted(frozen - backbone.keys())
        if missing:
            raise UserError(
                f"The files of model.path '{model.path}' lack {len(missing)} weights, {missing[0]} among them."
            )
        return backbone

    def is_known(self, name: str) -> bool:
        """Whether the checkpoint holds it."""
        return name in self.trained or MODULE_PREFIX + name in self.buffers.entries

    @staticmethod
    def in_backbone(name: str) -> str:
        return name.removeprefix("backbone.").replace(BASE, "")

    def read(self, name: str, start: int, count: int) -> Tensor:
        """``count`` stored elements of a flattened weight, by its name in the embedder with adapters."""
        if name in self.trained:
            return self.saved.read(MASTER, MODULE_PREFIX + name, start, count)
        if MODULE_PREFIX + name in self.buffers.entries:
            return self.buffers.read(MODULE_PREFIX + name, start, count)
        values = self.backbone[self.in_backbone(name)](start, count)
        if name in self.frozen:
            self.sums[name] = self.sums.get(name, 0) + bit_sum(values.to(self.trained_as))
        return values

    def check_frozen(self, checkpoint: Checkpoint, model: ModelSection) -> None:
        """Raises UserError if the backbone's weights are not those that the run was trained on; to be called once, when
        all that is needed was read."""
        for name in self.frozen - self.sums.keys():
            for _ in self.pieces(name, self.trained_as):
                pass
        sums = {MODULE_PREFIX + name: value for name, value in self.sums.items()}
        check_same_frozen_weights(checkpoint, fingerprint([sums]), model.path)

    def pieces(self, name: str, dtype: torch.dtype) -> Iterator[Tensor]:
        """The flattened values in ``dtype``, block after block."""
        elements = math.prod(self.shapes[name])
        for start in range(0, elements, BLOCK):
            yield narrowed(name, self.read(name, start, min(BLOCK, elements - start)), dtype)

    def merged(self, name: str, module: BaseTunerLayer, dtype: torch.dtype) -> Iterator[Tensor]:
        """A weight with its adapter folded in, flattened, in one piece. Raises UserError if it is not finite."""
        # In the masters' type: the backbone's own may be too narrow for the adapter's part of a sum.
        real: Any = copy.deepcopy(module)
        real = real.to(torch.float32).to_empty(device="cpu")
        with torch.no_grad():
            for own, parameter in real.named_parameters():
                parameter.copy_(self.read(f"{name}.{own}", 0, parameter.numel()).view(parameter.shape))
        try:
            yield narrowed(name, merged_weight(real).reshape(-1), dtype)
        except ValueError as error:
            raise UserError(f"The adapter of {name} cannot be merged: {' '.join(str(error).split())}") from error

    def merged_weights(self, target: torch.dtype) -> list[Weight]:
        """The weights of the embedder without adapters, floating-point ones as ``target``."""
        adapted, own, weights = adapted_modules(self.embedder), self.embedder.state_dict(), []
        for name, shape in self.shapes.items():
            owner = next((module for module in adapted if name.startswith(module + ".")), None)
            if owner and BASE not in name:
                continue
            dtype = target if own[name].is_floating_point() else own[name].dtype
            entry = Entry(name.replace(BASE, ""), dtype, shape)
            if owner and name == f"{owner}{BASE}.weight":
                weights.append(Weight(entry, partial(self.merged, owner, adapted[owner], dtype)))
            else:
                weights.append(Weight(entry, partial(self.pieces, name, dtype)))
        return weights


def narrowed(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in another type. Raises UserError if that has no room for one of them."""
    result = values.to(dtype)
    if dtype == torch.float16 and not torch.isfinite(result).all() and torch.isfinite(values).all():
        raise UserError(
            f"{name} holds a value of {values.abs().max():.3g}, which float16 has no room for; export in bfloat16 or "
            "float32."
        )
    return result


def write_shards(directory: Path, weights: Sequence[Weight], largest: int) -> dict[str, FileRecord]:
    """Write all weights, each when its turn comes, in files of at most ``largest`` bytes of weights (more if a
    single weight is larger).

    Returns:
        What each file of weights is, by its name.
    """
    shards = plan_shards(weights, largest)
    if len(shards) == 1:
        return {SAFE_WEIGHTS_NAME: write_shard(directory / SAFE_WEIGHTS_NAME, shards[0])}
    stem, suffix = SAFE_WEIGHTS_NAME.split(".")
    names = [f"{stem}-{number:05d}-of-{len(shards):05d}.{suffix}" for number in range(1, len(shards) + 1)]
    records = {name: write_shard(directory / name, shard) for name, shard in zip(names, shards, strict=True)}
    totals = {
        "total_size": sum(weight.entry.bytes for weight in weights),
        "total_parameters": sum(weight.entry.elements for weight in weights),
    }
    places = {weight.entry.name: name for name, shard in zip(names, shards, strict=True) for weight in shard}
    index = json.dumps({"metadata": totals, "weight_map": dict(sorted(places.items()))}, indent=2)
    (directory / SAFE_WEIGHTS_INDEX_NAME).write_text(index + "\n", encoding="utf-8")
    return records


def plan_shards(weights: Sequence[Weight], largest: int) -> list[list[Weight]]:
    """The weights in order, in files that the next one would not fit into."""
    shards: list[list[Weight]] = [[]]
    size = 0
    for weight in weights:
        if shards[-1] and size + weight.entry.bytes > largest:
            shards.append([])
            size = 0
        shards[-1].append(weight)
        size += weight.entry.bytes
    return shards


def write_shard(path: Path, weights: Sequence[Weight]) -> FileRecord:
    return write_tensors(path, [(weight.entry, weight.pieces()) for weight in weights], {"format": "pt"})
