"""What a GPU can do at most, measured: the share of it that training uses (MFU) then needs no data sheet."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from pdfx.distributed.world import World

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
    """10^12 FLOPs per second of a large square matrix product: the best of a few, since whatever else the GPU does can
    only slow it down."""
    left, right = (torch.ones(SIDE, SIDE, dtype=dtype, device=device) for _ in range(2))
    return 2 * SIDE**3 / min(_seconds(left, right) for _ in range(REPEATS)) / 1e12


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    torch.cuda.synchronize(left.device)
    started = time.perf_counter()
    torch.mm(left, right)
    torch.cuda.synchronize(left.device)
    return time.perf_counter() - started
