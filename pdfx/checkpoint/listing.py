"""What checkpoints a run has, for people: step, size, age, metric, and whether each is whole."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from pdfx.checkpoint.directory import PARTIAL, Checkpoint, checkpoint_paths, open_verified, step_of, verify_contents
from pdfx.checkpoint.manifest import strays
from pdfx.checkpoint.retention import Retention
from pdfx.config.run_files import CHECKPOINTS
from pdfx.errors import UserError
from pdfx.host.console import ShowProgress


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
