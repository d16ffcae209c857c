"""The ranks of a torchrun launch, for commands that also work alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

PATIENCE = timedelta(days=7)
"""Ranks' shares may take hours, and differ by hours; torchrun itself ends the other ranks when one fails."""


@dataclass(frozen=True)
class Ranks:
    """Attributes: ``rank`` from 0, ``world_size`` (1 without a launcher) and this rank's ``device``."""

    rank: int
    world_size: int
    device: torch.device

    def from_first(self, value: Any) -> Any:
        """Rank 0's value on every rank, which all must ask for."""
        shared = [value]
        if self.world_size > 1:
            distributed.broadcast_object_list(shared)
        return shared[0]

    def wait_for_all(self) -> None:
        """Return when every rank has come here."""
        if self.world_size > 1:
            distributed.all_reduce(torch.zeros(1))


def launched_world_size() -> int:
    """W of the launch that this process belongs to, 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def pick_device(index: int = 0) -> torch.device:
    """The GPU of that index, modulo their number, or the CPU if there is none."""
    return torch.device("cuda", index % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def launched_ranks() -> Iterator[Ranks]:
    """This process among the ranks that torchrun started, with a process group for CPU and GPU tensors; alone, and
    without a group, if nobody did."""
    world_size = launched_world_size()
    if world_size == 1:
        yield Ranks(0, 1, pick_device())
        return
    rank = int(os.environ["RANK"])
    device = pick_device(int(os.environ.get("LOCAL_RANK", rank)))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    # Not in a finally: after a failure, leaving the group in order would wait for ranks that are somewhere else.
    yield Ranks(rank, world_size, device)
    distributed.destroy_process_group()
