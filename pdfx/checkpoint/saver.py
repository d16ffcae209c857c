"""Writing checkpoints, in the background if memory allows: training continues as soon as the state is copied to host
memory.

Each rank writes its own file in a thread. When all ranks are done, which they find out after a later step, rank
0 seals the checkpoint and removes old ones, also in a thread. No thread uses a collective.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import cast

import deepspeed
import torch
import torch.distributed as dist

from pdfx.checkpoint.directory import (
    OPTIMIZER_STEPS,
    PARAMETERS,
    PARTIAL,
    PROBE,
    REPLACED,
    directory_name,
    remove_checkpoint,
)
from pdfx.checkpoint.manifest import Manifest, write_manifest
from pdfx.checkpoint.parameters import part_file_name
from pdfx.checkpoint.retention import Retention, prune
from pdfx.checkpoint.writing import (
    Content,
    Flats,
    HostCopy,
    Records,
    choose_background,
    first_part,
    make_partial,
    start_job,
    told_failure,
    write_parts,
)
from pdfx.checkpoint.zero_shards import flat_tensors, optimizer_steps, parts_of, persistent_buffers
from pdfx.config.run_files import CHECKPOINTS
from pdfx.distributed.world import CONTROL_TIMEOUT, World
from pdfx.errors import UserError
from pdfx.host.files import sync

PATIENCE = timedelta(seconds=15)
"""A rank that failed alone waits so long for the others before it ends; they are somewhere else."""


@dataclass
class Save:
    """A checkpoint on its way: ``job`` writes this rank's files or, when ``sealing``, makes it current on rank 0."""

    content: Content
    job: Future
    sealing: bool = False


class CheckpointSaver:
    """Saves checkpoints of a run, one at a time. Every rank calls every method at the same time; the run's directory
    must be seen by all of them.

    Args:
        run: the run's directory.
        engine: after its first step.
        world: this run's ranks.
        background: ``train.save_in_background``.
        retention: which older checkpoints stay.
    """

    def __init__(
        self, run: Path, engine: deepspeed.DeepSpeedEngine, world: World, background: bool | str, retention: Retention
    ):
        self.run, self.engine, self.setting, self.retention = run, engine, background, retention
        # A group of its own, so that a rank that waits here after a failure meets no rank that waits for something
        # else.
        # Every rank is in it, so it is never the number that torch gives those that are not.
        group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT))
        self.world = replace(world, control=group)
        self.background: bool | None = None
        self.copy = HostCopy()
        self.current: Save | None = None
        self.waited = 0.0

    def save(self, content: Content) -> list[str]:
        """Begin to save; the engine may continue when this returns. Returns log messages.

        Raises:
            UserError: this save, or the one before it, could not be written.
        """
        messages = self.finish()
        self.waited = 0.0
        with self._waiting():
            try:
                self._begin(content, messages)
            except (UserError, SystemExit):
                self._discard(content.step)
                raise
        return messages + ([] if self.background else self.finish())

    def _begin(self, content: Content, messages: list[str]) -> None:
        flats = flat_tensors(self.engine)
        if self.background is None:
            self.background, sentence = choose_background(self.setting, flats, self.world)
            messages.append(sentence)
        partial = self.partial(content.step)
        with self.world.together():
            if self.world.rank == 0:
                make_partial(self.run, partial)
        work = [self._own_part(partial, self.copy.take(flats) if self.background else flats)]
        with self.world.together():
            try:
                content.write_probe(partial / PROBE)
            except OSError as error:
                raise UserError(told_failure(partial, error)) from error
        if self.world.rank == 0:
            state = {**content.state, OPTIMIZER_STEPS: optimizer_steps(self.engine)}
            work.append(first_part(partial, replace(content, state=state), persistent_buffers(self.engine.module)))

        def write() -> Records:
            return {name: record for part in work for name, record in part().items()}

        self.current = Save(content, start_job(write, self.background))

    def advance(self) -> list[str]:
        """After each step: take a save that is ready a step further. Returns and raises as ``save`` does."""
        with self._waiting():
            return self._advance(self.current) if self.current else []

    def finish(self) -> list[str]:
        """Wait for the save that is on its way, if there is one. Returns and raises as ``save`` does."""
        messages = []
        while self.current:
            with self._waiting():
                futures.wait([self.current.job])
            messages += self.advance()
        return messages

    def rescue(self) -> None:
        """Finish a save if the run ends by an error of all ranks, unless a rank is not here within ``PATIENCE``."""
        if self.current is None:
            return
        with suppress(RuntimeError, UserError, SystemExit):
            if dist.all_reduce(torch.zeros(1), group=self.world.control, async_op=True).wait(PATIENCE):
                self.finish()

    def _advance(self, save: Save) -> list[str]:
        path, running = self.final(save.content.step), not save.job.done()
        running_anywhere, failed = self.world.largest([running, not running and save.job.exception() is not None])
        if failed:
            self.current = None
            error = save.job.exception()
            self.world.barrier()
            self._discard(save.content.step)
            with self.world.together():
                if error is not None:
                    raise UserError(told_failure(path, error)) from error
        if running_anywhere:
            return []
        if save.sealing:
            self.current = None
            return [f"Saved {path}; training waited for {self.waited:.1f} s.", *save.job.result()]
        records = {name: record for own in self.world.gather(save.job.result()) for name, record in own.items()}
        seal = start_job(lambda: self._seal(save.content, records), bool(self.background))
        self.current = Save(save.content, seal, sealing=True)
        return []

    def _discard(self, step: int) -> None:
        """Remove what was written of a checkpoint that cannot be finished: it may be what filled the disk."""
        if self.world.rank == 0:
            shutil.rmtree(self.partial(step), ignore_errors=True)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Count the block's time as time that the checkpoint holds training up."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - begun

    def _own_part(self, partial: Path, flats: Flats) -> Callable[[], Records]:
        parts, name = parts_of(self.engine), f"{PARAMETERS}/{part_file_name(self.world.rank, self.world.size)}"
        return lambda: {name: write_parts(partial / name, parts, flats)}

    def _seal(self, content: Content, records: Records) -> list[str]:
        """On rank 0: write the manifest, make the checkpoint current, and remove older ones. Returns log messages."""
        if self.world.rank != 0:
            return []
        partial, final = self.partial(content.step), self.final(content.step)
        write_manifest(partial, Manifest(content.step, records, content.metric))
        for path in [*(path for path in partial.rglob("*") if path.is_dir()), partial]:
            sync(path)
        replaced = final.with_name(final.name + REPLACED)
        if final.exists():
            # Only a run that resumes from an older checkpoint meets its own later ones again.
            final.rename(replaced)
        partial.rename(final)
        sync(final.parent)
        if replaced.exists():
            remove_checkpoint(replaced)
        return prune(self.run, self.retention, content.step)

    def final(self, step: int) -> Path:
        return self.run / CHECKPOINTS / directory_name(step)

    def partial(self, step: int) -> Path:
        return self.run / CHECKPOINTS / (directory_name(step) + PARTIAL)
