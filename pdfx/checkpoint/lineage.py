"""Which checkpoints of a run are its own past, if it was started from a checkpoint's directory instead of its newest
one."""

from __future__ import annotations

from pathlib import Path

from pdfx.checkpoint.directory import Checkpoint, checkpoint_paths, open_checkpoint, step_of
from pdfx.config.run_files import CHECKPOINTS
from pdfx.errors import UserError

ORIGIN = "started_from"
"""Key of ``Checkpoint.state``: the directory that ``train.resume`` named in the run that wrote it, or in one that it
goes back to; None if none did."""

ASIDE = ".aside"


def origin(resume: str, state: dict) -> str | None:
    """The value of ``ORIGIN`` for a run with the setting ``resume`` that resumes from ``state``."""
    return state.get(ORIGIN) if resume in ("auto", "never") else str(Path(resume).resolve())


def descendants(run: Path, start: Path) -> list[Path]:
    """The run's checkpoints that were written after it was started from ``start``, newest first; what cannot be opened
    is none."""

    def descends(path: Path) -> bool:
        try:
            return open_checkpoint(path).state().get(ORIGIN) == str(start.resolve())
        except (UserError, OSError, ValueError):
            return False

    return [path for path in checkpoint_paths(run) if descends(path)]


def set_aside(run: Path, start: Checkpoint) -> list[str]:
    """Rename the run's checkpoints that are not the past of one that is started from ``start``, which no state of the
    run may go back to.

    Returns:
        Log messages.

    Raises:
        UserError: a directory cannot be renamed.
    """
    own = start.path.resolve().parent == (run / CHECKPOINTS).resolve()
    foreign = [path for path in checkpoint_paths(run) if not own or step_of(path) > start.step]
    for path in foreign:
        try:
            path.rename(free_name(path))
        except OSError as error:
            raise UserError(
                f"{path} cannot be set aside for a run that resumes from {start.path}: {error.strerror}."
            ) from None
    names = ", ".join(path.name for path in reversed(foreign))
    return (
        [
            f"Set aside as '*{ASIDE}', because this run does not resume from them: {names}. Remove them when they are "
            "not needed."
        ]
        if foreign
        else []
    )


def free_name(path: Path) -> Path:
    name, number = path.with_name(path.name + ASIDE), 2
    while name.exists():
        name, number = path.with_name(f"{path.name}{ASIDE}-{number}"), number + 1
    return name
