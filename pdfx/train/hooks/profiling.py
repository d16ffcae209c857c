"""A trace of a few steps, for Perfetto or chrome://tracing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import profiler

from pdfx.train.run import Hook, Run

TRACE = "profile.json"
SKIPPED = 2
"""First steps of a run that are left out: they allocate, compile and warm up."""


class Profiling(Hook):
    """Profiles ``train.profile_steps`` steps of rank 0."""

    def start(self, run: Run) -> None:
        steps = run.config.train.profile_steps if run.world.rank == 0 else None
        self.advance = run.resources.enter_context(profiled(run.path / TRACE, steps))

    def step_done(self, run: Run, metrics: dict[str, float]) -> None:
        self.advance()


@contextmanager
def profiled(path: Path, steps: int | None) -> Iterator[Callable[[], None]]:
    """Write a trace of ``steps`` steps, after the first two; the block calls what it is given after each step."""
    if steps is None:
        yield lambda: None
        return
    schedule = profiler.schedule(wait=SKIPPED - 1, warmup=1, active=steps, repeat=1)
    with profiler.profile(
        schedule=schedule, on_trace_ready=lambda profile: profile.export_chrome_trace(str(path))
    ) as profile:
        yield profile.step
