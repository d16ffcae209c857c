"""Model FLOPs of a training step, from the shapes of its inputs.

A product of [n, a] with [a, b] counts 2nab FLOPs. Forward: ``2 * weights * rows`` for linear and patch-embedding
modules, ``4 * width * pairs`` for attention, where a pair is a query and a key that it sees (causal, own prefix
included). Backward: as much again for the gradients of inputs, and ``2 * trained weights * rows`` for those of weights;
attention twice its forward. With several passes per step every forward counts twice, as it runs twice.

Left out: norms, activations, rotary positions, pooling, objective, optimiser, and what activation checkpointing
recomputes, which is not work of the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import nn

from pdfx.data.batch import Batch
from pdfx.distributed.world import World
from pdfx.model import ParallelEmbedder
from pdfx.model.attention import uses_flash
from pdfx.model.packing import Packing


@dataclass(frozen=True)
class ModuleGroup:
    """Modules that see the same rows."""

    weights: int
    """Of linear and convolution modules."""
    trained: int
    """Those of them that get a gradient."""
    attention: int
    """Width of all heads, summed over layers."""
    reached: bool
    """Whether gradients flow through."""

    def forward(self, rows: int, pairs: int = 0) -> int:
        return 2 * self.weights * rows + 4 * self.attention * pairs

    def backward(self, rows: int, pairs: int = 0) -> int:
        return self.forward(rows, pairs) + 2 * self.trained * rows + 4 * self.attention * pairs if self.reached else 0


class StepCost:
    """FLOPs of one rank's share of a step.

    Args:
        embedder: prepared for training, whole or sharded.
        chunk_paths: the recipe's ``train.chunk_paths``.
        cached: whether the vision tower answers from a cache; it then counts as not run, as does a tower that is not
            plain transformer.
    """

    def __init__(self, embedder: ParallelEmbedder, chunk_paths: int | None = None, cached: bool = False):
        config, family = embedder.config, embedder.family
        self.model_type, self.backbone, self.prefix_length = family.model_type, config.backbone, config.prefix_length
        size = min(chunk_paths or config.paths, config.paths)
        self.path_groups = [min(size, config.paths - start) for start in range(0, config.paths, size)]
        text, vision = config.backbone.get_text_config(), config.backbone.vision_config
        heads = text.num_attention_heads
        width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
        layers, first = embedder.decoder.layers, min(config.prefix_layers, default=0)
        self.trunk = part_of(layers[:first], width * first, True)
        self.upper = part_of(layers[first:], width * (len(layers) - first), True)
        tower, projector = family.vision_of(embedder.backbone), embedder.backbone.get_submodule(family.projector)
        inside = set(projector.modules())
        trained = any(parameter.requires_grad for parameter in tower.parameters())
        # Qwen2-VL's tower ends with its projector, so a cache spares both.
        merges = self.model_type == "qwen2_vl"
        depth = vision.depth if merges else getattr(vision, "num_hidden_layers", 0)
        self.tower_counts, self.projector_counts = depth > 0 and not cached, not (cached and merges)
        attention = (vision.embed_dim if merges else vision.hidden_size) * depth
        self.tower = part_of(tower, attention, trained, inside)
        self.projector = part_of(
            projector, 0, trained or any(parameter.requires_grad for parameter in projector.parameters())
        )

    def of(self, batch: Batch) -> int:
        """FLOPs of an optimiser step on this rank's batch, all passes over it included."""
        times = 2 if len(batch.chunks) * len(self.path_groups) > 1 else 1
        total = 0
        for chunk in batch.chunks:
            for paths in self.path_groups:
                forward, backward = self.of_pass(chunk.inputs, paths)
                total += times * forward + backward
        return total

    def of_pass(self, inputs: dict[str, torch.Tensor], paths: int) -> tuple[int, int]:
        """Forward and backward FLOPs of embedding a padded batch by some of the paths; padding counts nothing."""
        lengths = inputs["attention_mask"].sum(1).long()
        tokens, causal = int(lengths.sum()), int((lengths * (lengths + 1) // 2).sum())
        # The trunk runs on one row if there are several paths, and holds no prefix.
        works = [
            (self.trunk, tokens, causal),
            (self.upper, paths * tokens, paths * (causal + tokens * self.prefix_length)),
        ]
        if "pixel_values" in inputs:
            rows, pairs, merged = self.vision_rows(inputs)
            works += [(self.tower, rows, pairs)] if self.tower_counts else []
            works += [(self.projector, merged, 0)] if self.projector_counts else []
        forward = sum(part.forward(rows, pairs) for part, rows, pairs in works)
        return forward, sum(part.backward(rows, pairs) for part, rows, pairs in works)

    def vision_rows(self, inputs: dict[str, torch.Tensor]) -> tuple[int, int, int]:
        """Rows and attention pairs of the vision tower, and rows of the projector."""
        vision = self.backbone.vision_config
        if self.model_type == "qwen2_vl":
            patches = inputs["image_grid_thw"].prod(-1)
            # The merger's linear modules see groups of patches side by side, one group per row.
            return int(patches.sum()), int((patches**2).sum()), int(patches.sum()) // vision.spatial_merge_size**2
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        crops = sum(
            image_size_to_num_patches(size, self.backbone.image_grid_pinpoints, vision.image_size)
            for size in inputs["image_sizes"].tolist()
        )
        patches = (vision.image_size // vision.patch_size) ** 2
        return crops * (patches + 1), crops * (patches + 1) ** 2, crops * patches


def padding_share(batch: Batch, embedder: ParallelEmbedder, device: torch.device) -> float:
    """Share of padding in this rank's attention: none with the varlen kernel, else that of the buckets."""
    if uses_flash(embedder.config.attention, torch.empty(0, device=device, dtype=embedder.dtype)):
        return 0.0
    packings = [Packing(chunk.inputs["attention_mask"], torch.zeros(1, dtype=torch.long)) for chunk in batch.chunks]
    places = sum(packing.tokens / (1 - packing.padding_share) for packing in packings)
    return 1 - sum(packing.tokens for packing in packings) / places


def part_of(module: nn.Module, attention: int, reached: bool, without: Collection[nn.Module] = ()) -> ModuleGroup:
    """Count linear and convolution weights, sharded ones by their whole size, except in the modules ``without``."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    weights = [child.weight for child in module.modules() if isinstance(child, kinds) and child not in without]
    sizes = [(getattr(weight, "ds_numel", weight.numel()), weight.requires_grad) for weight in weights]
    trained = sum(size for size, is_trained in sizes if is_trained)
    return ModuleGroup(sum(size for size, _ in sizes), trained, attention, reached)


SIDE = 8192
"""Of the square matrices, large enough that a product is bound by arithmetic."""
REPEATS = 20


def shared_peak_tflops(
    stated: float | str, world: World, dtype: torch.dtype, say: Callable[[str], None]
) -> float | None:
    """``train.peak_tflops``, measured if it is "measure"; the same on every rank. All ranks call this together.

    None on CPUs: their cores are shared with data workers, other ranks and other programs, so that a short measurement
    depends on who else was busy.
    """
    if not isinstance(stated, str):
        return stated
    if world.device.type != "cuda":
        return None
    # All ranks measure at once: those that share a machine share its power in training as well.
    world.barrier()
    peak = world.from_first(measured_peak_tflops(world.device, dtype))
    name, kind = torch.cuda.get_device_name(world.device), str(dtype).removeprefix("torch.")
    say(
        f"The best of {REPEATS} products of {SIDE} x {SIDE} matrices in {kind} reaches {peak:.3g} TFLOP/s on {name}; "
        "MFU is the share of that."
    )
    return peak


def measured_peak_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """10^12 FLOPs per second of a large matrix product: the best of a few, as all disturbances slow it down."""
    left, right = (torch.ones(SIDE, SIDE, dtype=dtype, device=device) for _ in range(2))
    return 2 * SIDE**3 / min(_seconds(left, right) for _ in range(REPEATS)) / 1e12


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    torch.cuda.synchronize(left.device)
    started = time.perf_counter()
    torch.mm(left, right)
    torch.cuda.synchronize(left.device)
    return time.perf_counter() - started
