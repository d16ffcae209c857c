"""Where a rank keeps its part of each trained parameter, its float32 master and its optimiser states; alike for ZeRO 1,
2 and 3.

DeepSpeed keeps masters and states in flat tensors, each of which holds the parts of several parameters one after
another. Under ZeRO 1 and 2 a group's parameters are laid end to end and the whole is cut by ranks; under ZeRO-3 each
parameter is cut by ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import Tensor

from pdfx.checkpoint.identity import bit_sum
from pdfx.checkpoint.parameters import MASTER, SavedParameters
from pdfx.model.vision_cache import CachedTower

STEP = "step"
Sharded: TypeAlias = Any
"""A parameter with the attributes that DeepSpeed adds to it (``ds_numel``, ``ds_shape``, ``_hp_mapping``, ...)."""


@dataclass(frozen=True)
class ParameterPart:
    """A rank's part of one trained parameter: ``count`` elements from ``start`` on of the flattened parameter."""

    name: str
    """Of the parameter in the engine's module."""
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    count: int
    flat: int
    """Number of the flat tensor that holds it, from ``offset`` on."""
    offset: int

    def of(self, flats: list[Tensor]) -> Tensor:
        """Its view in the flat tensors of one kind."""
        return flats[self.flat].narrow(0, self.offset, self.count)


def parts_of(engine: deepspeed.DeepSpeedEngine) -> list[ParameterPart]:
    """This rank's parts in the order of the module's parameters, without the padding that makes ranks' parts equal."""
    trained = (pair for pair in engine.module.named_parameters() if pair[1].requires_grad)
    return [part for pair in trained if (part := part_of(engine, *pair)) is not None]


def part_of(engine: deepspeed.DeepSpeedEngine, name: str, parameter: torch.nn.Parameter) -> ParameterPart | None:
    """This rank's part of one parameter; None if it lies on other ranks only."""
    find = sharded_part if engine.zero_optimization_stage() == 3 else partitioned_part
    part = find(name, parameter, engine.optimizer)
    return part if part is not None and part.count > 0 else None


def sharded_part(name: str, parameter: Sharded, optimizer: Any) -> ParameterPart:
    """Under ZeRO-3."""
    flat, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = dist.get_rank(parameter.ds_process_group) * length
    count = max(0, min(length, parameter.ds_numel - start))
    return ParameterPart(name, tuple(parameter.ds_shape), start, count, flat, offset)


def partitioned_part(name: str, parameter: Sharded, optimizer: Any) -> ParameterPart | None:
    """This rank's part of one parameter under ZeRO 1 and 2; None if the parameter lies on other ranks only."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    own, place = mapping.lp_fragment_address, mapping.get_hp_fragment_address()
    return ParameterPart(name, tuple(parameter.shape), own.start, own.numel, mapping.param_group_index, place.start)


def masters(engine: deepspeed.DeepSpeedEngine) -> list[Tensor]:
    """The flat tensors of float32 parameters; the keys of the base optimiser's states."""
    optimizer = engine.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    raise TypeError(f"{type(optimizer).__name__} keeps its float32 parameters in an unknown place")


def flat_tensors(engine: deepspeed.DeepSpeedEngine) -> dict[str, list[Tensor]]:
    """The flat tensors of masters and of each optimiser state, by kind."""
    flats, states = masters(engine), engine.optimizer.optimizer.state
    if STEP not in states[flats[0]]:
        # No step was made yet, or all were skipped.
        make_states(engine, 0)
    kinds = [
        kind for kind, value in states[flats[0]].items() if torch.is_tensor(value) and value.shape == flats[0].shape
    ]
    return {
        MASTER: [flat.detach() for flat in flats],
        **{kind: [states[flat][kind] for flat in flats] for kind in kinds},
    }


def optimizer_steps(engine: deepspeed.DeepSpeedEngine) -> int:
    """Steps that the base optimiser counts, which its bias correction depends on; the same everywhere."""
    return int(engine.optimizer.optimizer.state[masters(engine)[0]][STEP])


def frozen_sums(engine: deepspeed.DeepSpeedEngine) -> dict[str, int]:
    """``bit_sum`` of this rank's part of each frozen parameter, by name; rank 0 adds those that all keep whole."""
    owned = {
        f"{prefix}.{name}": parameter
        for prefix, module in engine.module.named_modules()
        if isinstance(module, CachedTower)
        for name, parameter in module.tower.named_parameters()
    }
    sums = {}
    for name, parameter in {**dict(engine.module.named_parameters()), **owned}.items():
        if parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_tensor"):
            shard, rank = parameter.ds_tensor, dist.get_rank(parameter.ds_process_group)
            own = max(0, min(shard.numel(), parameter.ds_numel - rank * shard.numel()))
            sums[name] = bit_sum(shard.narrow(0, 0, own))
        elif dist.get_rank() == 0:
            sums[name] = bit_sum(parameter)
    return sums


@torch.no_grad()
def restore_parts(engine: deepspeed.DeepSpeedEngine, saved: SavedParameters, steps: int) -> None:
    """Read this rank's parts of a checkpoint into masters and states; ``publish`` must follow, on all ranks.

    Args:
        steps: ``optimizer_steps`` of the checkpoint.

    Raises:
        UserError: a file ends early or cannot be read.
    """
    make_states(engine, steps)
    parts = parts_of(engine)
    for kind, flats in flat_tensors(engine).items():
        for part in parts:
            part.of(flats).copy_(saved.read(kind, part.name, part.start, part.count))


def make_states(engine: deepspeed.DeepSpeedEngine, steps: int) -> None:
    """The states that the optimiser makes in its first step, if it made none yet, and their number of steps."""
    base = engine.optimizer.optimizer
    for flat in masters(engine):
        state = base.state[flat]
        for kind in ("exp_avg", "exp_avg_sq"):
            if kind not in state:
                state[kind] = torch.zeros_like(flat)
        # Its own Adam counts in a plain number, torch's fused one in a tensor on the device.
        state[STEP] = steps if isinstance(base, DeepSpeedCPUAdam) else torch.tensor(float(steps), device=flat.device)


@torch.no_grad()
def publish(engine: deepspeed.DeepSpeedEngine) -> None:
    """Round the masters into the parameters that the model computes with. Every rank calls this at the same time."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() < 3:
        optimizer.update_lp_params()
        return
    optimizer.checkpoint_event_prologue()
    flats = masters(engine)
    for parameter in engine.module.parameters():
        if parameter.requires_grad:
            flat, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
            parameter.ds_tensor.data.copy_(flats[flat].narrow(0, offset, length).view(parameter.ds_tensor.shape))
    # Gathers the small parameters that every rank keeps whole.
    optimizer.checkpoint_event_epilogue()


def persistent_buffers(module: torch.nn.Module) -> dict[str, Tensor]:
    """Buffers that belong to a module's state, by name; ZeRO keeps them whole on every rank."""
    return {
        f"{prefix}{'.' if prefix else ''}{name}": buffer
        for prefix, child in module.named_modules()
        for name, buffer in child.named_buffers(recurse=False)
        if name not in child._non_persistent_buffers_set
    }
