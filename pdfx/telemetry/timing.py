"""Where a step's time goes, and what was done in it."""

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


class StepTimer:
    """What happened between two records, and how long it took.

    Args:
        devices: how many share the work.
        peak_tflops: of one device; None if it is not known.
    """

    def __init__(self, devices: int = 1, peak_tflops: float | None = None):
        self.devices, self.peak_tflops = devices, peak_tflops
        self.reset()

    def reset(self) -> None:
        self.start = time.perf_counter()
        self.waited = self.padding_share = 0.0
        self.pairs = self.tokens = self.flops = 0

    def add(self, pairs: int, tokens: int, flops: int, padding_share: float) -> None:
        """Count a step; ``padding_share`` is kept of the last one."""
        self.pairs += pairs
        self.tokens += tokens
        self.flops += flops
        self.padding_share = padding_share

    def report(self, peak_memory: float, phases: dict[str, float]) -> dict[str, float]:
        """Figures since the last report, in seconds, GiB, FLOPs of all devices and 10^12 FLOPs per second and device;
        ``phases`` in seconds. ``padding_share`` is the last step's."""
        seconds = time.perf_counter() - self.start
        report = {
            "seconds": seconds,
            "pairs_per_second": self.pairs / seconds,
            "tokens_per_second": self.tokens / seconds,
            "data_wait_share": self.waited / seconds,
            "peak_memory_gib": peak_memory,
            "padding_share": self.padding_share,
            "model_flops": self.flops,
            "model_tflops": self.flops / seconds / self.devices / 1e12,
        }
        if self.peak_tflops is not None:
            report["mfu"] = report["model_tflops"] / self.peak_tflops
        report |= {f"{name}_seconds": value for name, value in phases.items()}
        self.reset()
        return report
