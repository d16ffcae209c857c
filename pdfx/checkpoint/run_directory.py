"""The directory of a run: made, checked against mistakes, and given its configuration."""

from __future__ import annotations

from pathlib import Path

from pdfx.checkpoint.directory import checkpoint_paths
from pdfx.config import Config, TrainSection, dump_config
from pdfx.config.run_files import CHECKPOINTS, CONFIG, LOCK, METRICS, STACKS
from pdfx.errors import UserError
from pdfx.host.files import write_atomically

OURS = {CHECKPOINTS, LOCK, STACKS}
"""What may be there before a run's first file, its configuration."""


def open_run_directory(train: TrainSection) -> Path:
    """Make ``train.output_dir`` if it is missing.

    Raises:
        UserError: it cannot be a run's directory, or ``train.resume`` is ``never`` and it already holds a run.
    """
    run = Path(train.output_dir)
    try:
        (run / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"train.output_dir '{run}' cannot be made a run's directory: {error.strerror}.") from None
    strangers = sorted(path.name for path in run.iterdir() if path.name not in OURS)
    if strangers and not (run / CONFIG).exists():
        raise UserError(
            f"train.output_dir '{run}' holds '{strangers[0]}' but no run; choose a new directory or an earlier run's."
        )
    if train.resume == "never" and (checkpoint_paths(run) or (run / METRICS).exists()):
        raise UserError(
            f"train.output_dir '{run}' already holds a run and train.resume is 'never'; choose another directory, or "
            "set train.resume to 'auto'."
        )
    return run


def write_config(run: Path, config: Config) -> None:
    """Keep the resolved configuration with the run."""
    with write_atomically(run / CONFIG) as stream:
        stream.write(dump_config(config).encode())
