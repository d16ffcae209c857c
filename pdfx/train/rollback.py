"""Going back to an earlier checkpoint within a run."""

from __future__ import annotations

from pathlib import Path

from pdfx.checkpoint.directory import Checkpoint, checkpoint_paths, remove_checkpoint, step_of
from pdfx.checkpoint.resume import open_together
from pdfx.distributed.world import World
from pdfx.errors import UserError
from pdfx.train.step_guards import CURE, RollBack


def checkpoint_before(run: Path, request: RollBack, world: World) -> Checkpoint:
    """The newest whole checkpoint from before ``request.step``; all ranks look at its files together.

    Raises:
        UserError: there is none.
        SystemExit: the same, on ranks whose peer reports it.
    """
    for path in world.from_first([path for path in checkpoint_paths(run) if step_of(path) < request.step]):
        checkpoint, problem = open_together(path, world)
        if problem is None:
            return checkpoint
    with world.together():
        raise UserError(
            f"{request.reason[0].upper()}{request.reason[1:]}, and {run} holds no whole checkpoint from before step "
            f"{request.step} to go back to; "
            f"lower train.save_steps or raise train.save_total_limit, and {CURE}"
        )


def remove_later_checkpoints(run: Path, step: int) -> None:
    """Remove what was saved after ``step``, so that a resume takes up the stretch that is trained anew and not the one
    that was taken back."""
    for path in checkpoint_paths(run):
        if step_of(path) > step:
            remove_checkpoint(path)
