"""Where a step's time goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Phases:
    """Seconds by phase; a phase within another counts for itself alone.

    ``embed``: forward passes, the second one of chunked backprop included. ``objective``: the loss and its gradient of
    the embeddings. ``backward``: backward passes and those sums over ranks that DeepSpeed overlaps with them.
    ``reduce``: the sums over ranks, if they are made once per step. ``optimiser``: the update.

    Args:
        device: its queued work is waited for at each border, so that it counts for the phase that queued it.
        enter: called with the name of each phase that begins.
    """

    def __init__(self, device: torch.device, enter: Callable[[str], None] = lambda name: None):
        self.device, self.enter = device, enter
        self.seconds: dict[str, float] = {}
        self.open: list[str] = []
        self.since = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._close()
        self.enter(name)
        self.open.append(name)
        try:
            yield
        finally:
            self._close()
            self.open.pop()

    def take(self) -> dict[str, float]:
        """The seconds since they were last taken."""
        taken, self.seconds = self.seconds, {}
        return taken

    def _close(self) -> None:
        """Count the time since the last border for the phase that is open."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self.open:
            self.seconds[self.open[-1]] = self.seconds.get(self.open[-1], 0.0) + now - self.since
        self.since = now
