"""What a device can do at most, measured: the share of it that training uses (MFU) then needs no data sheet."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from pdfx.train.cluster import World

SIDES = {"cuda": 8192, "cpu": 512}
"""Sides of the square matrices, large enough that a product is bound by arithmetic."""
REPEATS = 5


def shared_peak_tflops(stated: float | str | None, world: World, dtype: torch.dtype, say: Callable[[str], None]) -> float | None:
    """``train.peak_tflops``, measured where it is "measure"; the same on every rank, which call this together."""
    if stated != "measure":
        return stated
    # All ranks measure at once: those that share a machine share its power in training as well.
    world.barrier()
    peak = world.from_first(measured_peak_tflops(world.device, dtype))
    say(f"A large matrix product reaches {peak:.3g} TFLOP/s per device; MFU is told against that.")
    return peak


def measured_peak_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """10^12 FLOPs per second of a large square matrix product: the median of a few, after one that warms up."""
    side = SIDES[device.type]
    left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    seconds = [_seconds(left, right) for _ in range(REPEATS + 1)][1:]
    return 2 * side**3 / statistics.median(seconds) / 1e12


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    started = time.perf_counter()
    torch.mm(left, right)
    if left.is_cuda:
        torch.cuda.synchronize(left.device)
    return time.perf_counter() - started
