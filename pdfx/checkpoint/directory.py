"""The checkpoints of a run: where they lie, what belongs to one, and which is the newest whole one.

A checkpoint is a transaction: it is written as ``step-00000100.partial``, synced, listed in a manifest, and made
current by one rename.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pdfx.checkpoint.manifest import DamagedError, Manifest, read_manifest, wrong_contents, wrong_sizes
from pdfx.config import Config, TrainSection, dump_config
from pdfx.config.run_files import CHECKPOINTS, CONFIG, LOCK, MANIFEST, METRICS, STACKS
from pdfx.errors import UserError
from pdfx.host.files import write_atomically
from pdfx.host.reading import read_json

PARTIAL = ".partial"
REPLACED = ".replaced"
PARAMETERS = "parameters"
PROBE = "probe"
STATE = "state/trainer.json"
OBJECTIVE = "state/objective.pt"
BUFFERS = "state/buffers.safetensors"
OPTIMIZER_STEPS = "optimizer_steps"
"""Key of ``Checkpoint.state``: steps that the optimiser counts."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose files have the sizes that its manifest says."""

    path: Path
    manifest: Manifest
    stamps: dict[str, tuple] = field(default_factory=dict, compare=False)
    """Of its files when it was opened, before their contents were compared."""

    @property
    def step(self) -> int:
        return self.manifest.step

    def state(self) -> dict:
        """The trainer's plain values: step, loader counters, model identity. Raises UserError."""
        try:
            return read_json(self.file(STATE))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{self.path / STATE} cannot be read: {reason}.") from None

    def file(self, name: str) -> Path:
        """The path of one of its files. Raises DamagedError if the manifest does not list it."""
        if name not in self.manifest.files:
            raise DamagedError(not_whole(self.path, [f"{MANIFEST} does not list {name}"]))
        return self.path / name

    def files(self, folder: str) -> list[Path]:
        """Those of its files that lie in one of its folders."""
        return [self.path / name for name in sorted(self.manifest.files) if name.startswith(f"{folder}/")]

    def require_unchanged(self) -> None:
        """Raises UserError if a file is not the one that was verified; to be called when everything was read."""
        stamps = wrong_sizes(self.path, self.manifest)[1]
        if changed := [name for name, before in self.stamps.items() if stamps.get(name) != before]:
            raise UserError(
                f"{self.path / changed[0]} changed while the checkpoint was read; leave it alone meanwhile, and "
                "start again."
            )


Verify = Callable[[Checkpoint], list[str]]
"""What is wrong with a checkpoint's contents, each as the end of a sentence."""


def verify_contents(checkpoint: Checkpoint) -> list[str]:
    """Compare all checksums, in this process."""
    return wrong_contents(checkpoint.path, checkpoint.manifest, checkpoint.manifest.files)


def directory_name(step: int) -> str:
    return f"step-{step:08d}"


def checkpoint_paths(run: Path) -> list[Path]:
    """The run's checkpoint directories, newest first; unfinished ones are none."""
    found = (path for path in (run / CHECKPOINTS).glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))
    return sorted((path for path in found if path.is_dir()), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def open_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint whose every file has the size that its manifest says.

    Raises:
        DamagedError: it is not whole.
        UserError: it is of another version, or cannot be read.
    """
    manifest = read_manifest(path)
    try:
        problems, stamps = wrong_sizes(path, manifest)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror} ({error.filename}).") from None
    if problems:
        raise DamagedError(not_whole(path, problems))
    return Checkpoint(path, manifest, stamps)


def not_whole(path: Path, problems: list[str]) -> str:
    """The sentence about a checkpoint with problems."""
    more = f" ({len(problems)} files in all)" if len(problems) > 1 else ""
    return f"{path} is not a whole checkpoint: {problems[0]}{more}."


def open_verified(path: Path, verify: Verify = verify_contents) -> Checkpoint:
    """The same, and ``verify`` finds nothing wrong with its contents either."""
    checkpoint = open_checkpoint(path)
    problems = verify(checkpoint)
    if problems:
        raise UserError(not_whole(path, problems))
    return checkpoint


def newest_whole(run: Path, verify: Verify = verify_contents) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of a run, if any, and one sentence per newer one that was passed over."""
    passed_over: list[str] = []
    for path in checkpoint_paths(run):
        try:
            return open_verified(path, verify), passed_over
        except UserError as error:
            passed_over.append(str(error))
    return None, passed_over


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint; of a link, the link alone. The manifest goes first, so that half of one is not whole."""
    if path.is_symlink():
        path.unlink()
        return
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)


def remove_unfinished(run: Path) -> None:
    """Remove what a save left that was killed."""
    for suffix in (PARTIAL, REPLACED):
        for path in (run / CHECKPOINTS).glob(f"step-*{suffix}"):
            with suppress(OSError):
                remove_checkpoint(path)


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
