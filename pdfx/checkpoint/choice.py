"""The checkpoint that a user means: a step's, the newest whole one, or the best one."""

from __future__ import annotations

from pathlib import Path

from pdfx.checkpoint.directory import (
    Checkpoint,
    checkpoint_paths,
    directory_name,
    newest_whole,
    open_checkpoint,
    open_verified,
)
from pdfx.checkpoint.retention import Retention
from pdfx.config import TrainSection
from pdfx.config.run_files import CHECKPOINTS
from pdfx.errors import UserError


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


def whole_checkpoints(paths: list[Path]) -> list[Checkpoint]:
    """Those whose files are all there in their sizes."""
    whole = []
    for path in paths:
        try:
            whole.append(open_checkpoint(path))
        except UserError:
            continue
    return whole


def best_checkpoint(run: Path, rule: Retention) -> Checkpoint:
    """The best of the run's whole checkpoints. Raises UserError if none has the metric, or the best is damaged."""
    best = rule.best(whole_checkpoints(checkpoint_paths(run)))
    if best is None:
        cure = (
            f"none of them has the metric '{rule.metric}'"
            if rule.metric
            else "the run names no train.metric_for_best_model"
        )
        raise UserError(f"No checkpoint of {run} is known to be the best: {cure}; choose one by its step.")
    return open_verified(best.path)
