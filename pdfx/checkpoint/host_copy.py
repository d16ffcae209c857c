"""A copy of a rank's parameters and optimiser states in host memory: training continues while it is written."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import torch
from torch import Tensor

from pdfx.distributed.world import World
from pdfx.host.memory import available_bytes

SHARE = 0.5
"""Share of a machine's available memory that the copies of its ranks may take. The value is ours: data workers and the
files' cache need the rest."""

Flats = dict[str, list[Tensor]]
"""Flat tensors by kind, see ``parts.flat_tensors``."""


class HostCopy:
    """Buffers that are made at the first copy and kept, because new memory costs more time than copying."""

    def __init__(self) -> None:
        self.buffers: Flats = {}

    def take(self, flats: Flats) -> Flats:
        """Copy the tensors as they are now; what the last call returned is overwritten."""
        pinned = any(tensor.is_cuda for tensors in flats.values() for tensor in tensors)
        if not self.buffers:
            self.buffers = {
                kind: [torch.empty_like(tensor, device="cpu", pin_memory=pinned) for tensor in tensors]
                for kind, tensors in flats.items()
            }
        for kind, tensors in flats.items():
            for buffer, tensor in zip(self.buffers[kind], tensors, strict=True):
                buffer.copy_(tensor, non_blocking=True)
        if pinned:
            torch.cuda.synchronize()
        return self.buffers


@dataclass(frozen=True)
class Need:
    """What one rank's copy takes of its machine, in bytes, and what the machine has available."""

    host: str
    bytes: int
    available: int


def choose_background(setting: bool | str, flats: Flats, world: World) -> tuple[bool, str]:
    """Whether checkpoints are written in the background, the same on all ranks, and a sentence that says so and why.

    Args:
        setting: ``train.save_in_background``.
    """
    if setting != "auto":
        how = "in the background" if setting else "while training waits"
        return bool(setting), f"Checkpoints are written {how}, as train.save_in_background says."
    own = sum(tensor.nbytes for tensors in flats.values() for tensor in tensors)
    return by_memory(world.gather(Need(socket.gethostname(), own, available_bytes())))


def by_memory(needs: list[Need]) -> tuple[bool, str]:
    """The same by the ranks' needs: on no machine may the copies take more than ``SHARE`` of its available memory."""
    hosts = {need.host for need in needs}
    taken = {host: sum(need.bytes for need in needs if need.host == host) for host in hosts}
    available = {host: min(need.available for need in needs if need.host == host) for host in hosts}
    fullest = max(sorted(hosts), key=lambda host: taken[host] / max(available[host], 1))
    background = taken[fullest] <= SHARE * available[fullest]
    how, bound = ("in the background", "at most") if background else ("while training waits", "more than")
    return background, (
        f"Checkpoints are written {how}: copies take {taken[fullest] / 2**30:.2f} GiB, {bound} {SHARE:.0%} of the "
        f"{available[fullest] / 2**30:.1f} GiB free on {fullest}."
    )
