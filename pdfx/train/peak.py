"""What a device can do at most, measured: the share of it that training uses (MFU) then needs no data sheet."""

from __future__ import annotations

import statistics
import time

import torch

SIDES = {"cuda": 8192, "cpu": 512}
"""Sides of the square matrices, large enough that a product is bound by arithmetic."""
REPEATS = 5


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
