"""Sums of gradients over ranks: once per optimiser step, or after each forward pass of it."""

from __future__ import annotations

import os
from collections.abc import Iterable

import deepspeed
import torch
from torch import Tensor

from pdfx.telemetry.timing import Phases

SHARE = 0.1
"""Share of a rank's memory that whole gradients may take if the choice is left to the program. The value is ours:
the rest must hold weights, optimiser state and activations, which usually fill it."""


def backward_all(
    engine: deepspeed.DeepSpeedEngine, losses: Iterable[Tensor], count: int, per_step: bool, phases: Phases
) -> None:
    """Send ``count`` losses back, each made when the one before is done, and leave the sum of their gradients, averaged
    over ranks, to ``engine.step``.

    Args:
        per_step: one reduction for all of them; gradients are added up on each rank until then, in float32. Otherwise
            each is reduced into the shards at once, so that a rank never holds more than one bucket of whole gradients.
            ZeRO 1 keeps whole gradients and always reduces once.
        phases: takes the time; that of a reduction for itself if it is a step of its own, and not a part of the
            backward pass.
    """
    if per_step and count > 1 and engine.zero_optimization_stage() > 1:
        with phases("reduce"):
            _reduce_once(engine, losses, phases)
        return
    with phases("backward"):
        for number, loss in enumerate(losses):
            engine.set_gradient_accumulation_boundary(number == count - 1)
            engine.backward(loss)


def _reduce_once(engine: deepspeed.DeepSpeedEngine, losses: Iterable[Tensor], phases: Phases) -> None:
    # Leaving the inner block is what reduces, so the time outside of the backward passes is the reduction's.
    engine.set_gradient_accumulation_boundary(True)
    sums = WideSums(trainable(engine.module))
    with engine.coalesce_grad_reduction(), phases("backward"):
        try:
            for loss in losses:
                engine.backward(loss)
                sums.add()
            sums.put_back()
        except BaseException:
            # Leaving the block reduces whatever gradients there are; a rank that fails alone (out of memory, say) would
            # wait for the others for ever.
            for parameter in trainable(engine.module):
                parameter.grad = None
            raise


class WideSums:
    """Float32 sums of narrower gradients: adding up many chunks in the 8 bits of bf16 would lose the small ones."""

    def __init__(self, parameters: list[torch.nn.Parameter]):
        self.parameters = [parameter for parameter in parameters if parameter.dtype.itemsize < 4]
        self.sums: dict[int, Tensor] = {}

    def add(self) -> None:
        """Take what the last backward pass left in ``grad``."""
        for number, parameter in enumerate(self.parameters):
            # The tensor itself stays: under ZeRO-3 a whole gradient cannot be set while the parameter is sharded.
            if parameter.grad is not None:
                if number in self.sums:
                    self.sums[number].add_(parameter.grad)
                else:
                    self.sums[number] = parameter.grad.float()
                parameter.grad.zero_()

    def put_back(self) -> None:
        """Round the sums into ``grad``, once."""
        for number, total in self.sums.items():
            # Kept by add.
            self.parameters[number].grad.copy_(total)  # type: ignore[union-attr]
        self.sums.clear()


def trainable(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def gradient_bytes(module: torch.nn.Module) -> int:
    """What all gradients take on a rank that keeps them whole, with their float32 sums if they are narrower."""
    counts = [
        (getattr(parameter, "ds_numel", parameter.numel()), parameter.dtype.itemsize) for parameter in trainable(module)
    ]
    return sum(count * (size if size >= 4 else size + 4) for count, size in counts)


def rank_memory(device: torch.device, ranks: int) -> int:
    """Bytes of the device, or this rank's part of the machine's memory if it computes on the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks


def choose_reduction(setting: str, stage: int, gradients: int, memory: int) -> tuple[bool, str]:
    """Whether to reduce once per step, and a sentence that says so and why.

    Args:
        setting: ``train.gradient_reduction``.
        stage: of ZeRO.
        gradients: ``gradient_bytes``.
        memory: ``rank_memory``, the smallest of all ranks.
    """
    if stage == 1:
        return True, "Gradients are summed over ranks once per step, as ZeRO stage 1 always does."
    if setting != "auto":
        once = setting == "step"
        return (
            once,
            f"Gradients are summed over ranks {'once per step' if once else 'after each chunk'}, as "
            "train.gradient_reduction says.",
        )
    once = gradients <= SHARE * memory
    sizes = (
        f"they take {gradients / 2**30:.2f} GiB, {'at most' if once else 'more than'} {SHARE:.0%} of a rank's "
        f"{memory / 2**30:.0f} GiB"
    )
    return once, f"Gradients are summed over ranks {'once per step' if once else 'after each chunk'}: whole, {sizes}."
