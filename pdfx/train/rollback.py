"""Going back to an earlier checkpoint within a run."""

from __future__ import annotations

from pathlib import Path

from pdfx.checkpoint.directory import Checkpoint, checkpoint_paths, open_verified, remove_checkpoint, step_of
from pdfx.errors import UserError
from pdfx.train.guards import CURE, RollBack


def checkpoint_before(run: Path, request: RollBack) -> Checkpoint:
    """The newest whole checkpoint from before ``request.step``.

    Raises:
        UserError: there is none.
    """
    for path in checkpoint_paths(run):
        try:
            if step_of(path) < request.step:
                return open_verified(path)
        except UserError:
            continue
    raise UserError(
        f"{request.reason[0].upper()}{request.reason[1:]}, and {run} holds no whole checkpoint from before step {request.step} to go back to; "
        f"lower train.save_steps or raise train.save_total_limit, and {CURE}"
    )


def remove_later_checkpoints(run: Path, step: int) -> None:
    """Remove what was saved after ``step``, so that a resume takes up the stretch that is trained anew and not the one that was taken back."""
    for path in checkpoint_paths(run):
        if step_of(path) > step:
            remove_checkpoint(path)
