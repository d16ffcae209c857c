"""The checkpoints of a run: which stay (newest, every so many steps one, best), which a user means, and their list."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from pdfx.checkpoint.directory import (
    PARTIAL,
    Checkpoint,
    checkpoint_paths,
    directory_name,
    newest_whole,
    open_checkpoint,
    open_verified,
    remove_checkpoint,
    step_of,
    verify_contents,
)
from pdfx.checkpoint.manifest import DamagedError, strays
from pdfx.config import TrainSection
from pdfx.config.run_files import CHECKPOINTS
from pdfx.errors import UserError
from pdfx.host.console import ShowProgress


@dataclass(frozen=True)
class Retention:
    """What a recipe says about it."""

    newest: int
    """So many newest checkpoints stay."""
    every: int | None = None
    """Those of steps that are multiples of it stay."""
    metric: str | None = None
    """Name of the evaluation's figure by which the best one is known, which stays."""
    greater_is_better: bool = True

    def best(self, checkpoints: list[Checkpoint]) -> Checkpoint | None:
        """The one with the best value of the metric, the earliest of equals; None if none has any."""
        sign = -1 if self.greater_is_better else 1
        rated = [
            (sign * value, checkpoint.step, number)
            for number, checkpoint in enumerate(checkpoints)
            if (value := self.value_of(checkpoint)) is not None
        ]
        return checkpoints[min(rated)[2]] if rated else None

    def value_of(self, checkpoint: Checkpoint) -> float | None:
        """The checkpoint's value of the metric, if it has a finite one."""
        metric = checkpoint.manifest.metric
        if metric is None or metric.name != self.metric or not math.isfinite(metric.value):
            return None
        return metric.value

    def stays(self, checkpoints: list[Checkpoint]) -> set[Path]:
        """The paths of those that stay, of whole checkpoints in any order."""
        newest = sorted(checkpoints, key=lambda checkpoint: checkpoint.step)[-self.newest :]
        kept = [checkpoint for checkpoint in checkpoints if self.every and checkpoint.step % self.every == 0]
        best = self.best(checkpoints)
        return {checkpoint.path for checkpoint in (*newest, *kept, *([best] if best else []))}


def prune(run: Path, retention: Retention, step: int) -> list[str]:
    """Remove what need not stay after the checkpoint of ``step``; returns sentences about what stays although it could
    not be read or removed.

    Damaged ones from before it are removed as well; later ones, which only a run has that went on from an older
    checkpoint, are left alone.
    """
    whole, damaged, messages = [], [], []
    for path in checkpoint_paths(run):
        if step_of(path) > step:
            continue
        try:
            whole.append(open_checkpoint(path))
        except DamagedError:
            damaged.append(path)
        except UserError as error:
            messages.append(f"Warning: an older checkpoint stays for now: {error}")
    stays = retention.stays(whole)
    for path in (*damaged, *(checkpoint.path for checkpoint in whole if checkpoint.path not in stays)):
        if path.is_symlink():
            messages.append(
                f"The older checkpoint {path} was a link: the link is removed, and {path.resolve()} stays as it is."
            )
        try:
            remove_checkpoint(path)
        except OSError as error:
            messages.append(
                f"Warning: the older checkpoint {path} cannot be removed: {error.strerror} ({error.filename})."
            )
    return messages


def retention_of(train: TrainSection) -> Retention:
    """A recipe's rule."""
    return Retention(train.save_total_limit, train.keep_steps, train.metric_for_best_model, train.greater_is_better)


def chosen_checkpoint(run: Path, choice: str, train: TrainSection) -> Checkpoint:
    """The checkpoint called ``newest`` (whole one), ``best``, or by its step; its contents are verified.

    Raises:
        UserError: there is none, or the one that was named is not whole.
    """
    if choice.isdecimal():
        return open_verified(run / CHECKPOINTS / directory_name(int(choice)))
    if choice == "best":
        return best_checkpoint(run, retention_of(train))
    if choice != "newest":
        raise UserError(f"'{choice}' names no checkpoint; give a step, 'newest' or 'best'.")
    checkpoint, passed_over = newest_whole(run)
    if checkpoint is None:
        raise UserError(" ".join([f"{run} has no whole checkpoint; train until train.save_steps first.", *passed_over]))
    return checkpoint


def best_checkpoint(run: Path, rule: Retention) -> Checkpoint:
    """The best of the run's whole checkpoints. Raises UserError if none has the metric, or the best is damaged."""
    whole = []
    for path in checkpoint_paths(run):
        with suppress(UserError):
            whole.append(open_checkpoint(path))
    best = rule.best(whole)
    if best is None:
        unnamed = "the run names no train.metric_for_best_model"
        cure = f"none of them has the metric '{rule.metric}'" if rule.metric else unnamed
        raise UserError(f"No checkpoint of {run} is known to be the best: {cure}; choose one by its step.")
    return open_verified(best.path)


@dataclass(frozen=True)
class Row:
    """One checkpoint."""

    step: int
    bytes: int
    age: float
    """Seconds since it was written."""
    problem: str | None = None
    """The sentence that says why it is not whole."""
    finished: bool = True
    """False if it is being written, or was when its run was killed."""
    metric: float | None = None
    """Its value of the metric that chooses the best one."""
    best: bool = False
    strays: tuple[str, ...] = ()
    """Files that do not belong to it; looked for if contents are verified."""


def list_checkpoints(run: Path, rule: Retention, verify: bool, progress: ShowProgress | None = None) -> list[Row]:
    """The run's checkpoints, newest first, unfinished ones before.

    Args:
        rule: says which is best.
        verify: also read every file and compare its checksum.

    Raises:
        UserError: ``run`` is not a run's directory.
    """
    if not (run / CHECKPOINTS).is_dir():
        raise UserError(
            f"{run} is not a run directory: it has no folder '{CHECKPOINTS}'; give the train.output_dir of a run."
        )
    paths = checkpoint_paths(run)
    found: dict[Path, Checkpoint | str] = {}
    for number, path in enumerate(paths, 1):
        try:
            found[path] = open_verified(path, verify_contents if verify else lambda _: [])
        except UserError as error:
            found[path] = str(error)
        if progress is not None:
            progress(number, len(paths))
    # A run in progress removes old ones meanwhile.
    found = {path: checkpoint for path, checkpoint in found.items() if path.is_dir()}
    best = rule.best([checkpoint for checkpoint in found.values() if isinstance(checkpoint, Checkpoint)])
    unfinished = [
        Row(step_of(path.with_suffix("")), disk_bytes(path), age_of(path), finished=False)
        for path in sorted((run / CHECKPOINTS).glob(f"step-*{PARTIAL}"), reverse=True)
    ]
    return unfinished + [row_of(path, checkpoint, rule, best, verify) for path, checkpoint in found.items()]


def row_of(path: Path, found: Checkpoint | str, rule: Retention, best: Checkpoint | None, verify: bool) -> Row:
    """The row of a checkpoint that was opened, or of one that was not, for the reason ``found``."""
    if isinstance(found, str):
        return Row(step_of(path), disk_bytes(path), age_of(path), problem=found)
    others = tuple(strays(path, found.manifest)) if verify else ()
    return Row(
        found.step, disk_bytes(path), age_of(path), metric=rule.value_of(found), best=found == best, strays=others
    )


def disk_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def age_of(path: Path) -> float:
    return max(0.0, time.time() - path.stat().st_mtime)


def table_of(rows: list[Row], rule: Retention, verified: bool) -> Table:
    """The rows for the console."""
    table = Table("step", "size", "age", *([rule.metric] if rule.metric else []), "state", title="Checkpoints")
    for row in rows:
        whole = "whole, contents verified" if verified else "whole"
        state = "unfinished" if not row.finished else "not whole" if row.problem else whole
        metric = [] if not rule.metric else ["" if row.metric is None else f"{row.metric:.4g}"]
        table.add_row(
            f"{row.step:,}", size_text(row.bytes), age_text(row.age), *metric, state + (", best" if row.best else "")
        )
    return table


def size_text(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}" if unit != "B" else f"{count} B"


def age_text(seconds: float) -> str:
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
