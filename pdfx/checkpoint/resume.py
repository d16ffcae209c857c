"""Resuming from a checkpoint: which one, whether it fits, and loading it, at any world size and ZeRO stage."""

from __future__ import annotations

import io
from pathlib import Path

import deepspeed
import torch

from pdfx.checkpoint.directory import (
    BUFFERS,
    OBJECTIVE,
    OPTIMIZER_STEPS,
    PARAMETERS,
    Checkpoint,
    checkpoint_paths,
    not_whole,
    open_checkpoint,
    step_of,
)
from pdfx.checkpoint.manifest import share_out, wrong_contents
from pdfx.checkpoint.parameters import SavedParameters
from pdfx.checkpoint.zero_shards import persistent_buffers, publish, restore_parts
from pdfx.config.deepspeed_file import flatten
from pdfx.config.run_files import CHECKPOINTS
from pdfx.distributed.world import World
from pdfx.errors import UserError
from pdfx.host.reading import read_bounded
from pdfx.host.tensor_files import TensorFile

ORIGIN = "started_from"
"""Key of ``Checkpoint.state``: the directory that ``train.resume`` named in the run that wrote it, or in one that it
goes back to; None if none did."""

ASIDE = ".aside"


def origin(resume: str, state: dict) -> str | None:
    """The value of ``ORIGIN`` for a run with the setting ``resume`` that resumes from ``state``."""
    return state.get(ORIGIN) if resume in ("auto", "never") else str(Path(resume).resolve())


def descendants(run: Path, start: Path) -> list[Path]:
    """The run's readable checkpoints that were written after it was started from ``start``, newest first."""

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
    if not foreign:
        return []
    names = ", ".join(path.name for path in reversed(foreign))
    return [
        f"Set aside as '*{ASIDE}', because this run does not resume from them: {names}. Remove them when they are not "
        "needed."
    ]


def free_name(path: Path) -> Path:
    name, number = path.with_name(path.name + ASIDE), 2
    while name.exists():
        name, number = path.with_name(f"{path.name}{ASIDE}-{number}"), number + 1
    return name


_LARGEST_OBJECTIVE = 1 << 32


def agree_on_checkpoint(run: Path, resume: str, world: World) -> tuple[Checkpoint | None, list[str]]:
    """What ``train.resume`` asks for, the same on all ranks: the checkpoint, if any, and sentences about those that
    were passed over.

    Rank 0 looks for it; all ranks together read its files and compare their checksums. A run that was started from a
    checkpoint's directory resumes from the newest of the checkpoints that it has written since.

    Raises:
        UserError: a checkpoint named by its directory is not whole, or none of those that the run has is.
        SystemExit: the same, on ranks whose peer reports it.
    """
    if resume == "never":
        return None, []
    passed_over: list[str] = []
    found = None
    if world.rank == 0:
        found = checkpoint_paths(run) if resume == "auto" else [*descendants(run, Path(resume)), Path(resume)]
    for path in world.from_first(found):
        checkpoint, problem = open_together(path, world)
        if problem is None:
            return checkpoint, passed_over
        passed_over.append(problem)
    with world.together():
        if resume != "auto" and world.rank == 0:
            raise UserError(passed_over[-1])
        if passed_over and world.rank == 0:
            raise UserError(
                f"None of the {len(passed_over)} checkpoints in {run} can be resumed, and a new run there would write "
                f"over this one. {passed_over[0]} Mend them, or choose another train.output_dir."
            )
    return None, passed_over


def open_together(path: Path, world: World) -> tuple[Checkpoint | None, str | None]:
    """A checkpoint whose contents all ranks found right, each a share of the files; or what is wrong."""
    found: tuple[Checkpoint | None, str | None] = None, None
    if world.rank == 0:
        try:
            found = open_checkpoint(path), None
        except UserError as error:
            found = None, str(error)
    checkpoint, problem = world.from_first(found)
    if checkpoint is None:
        return None, problem
    own = wrong_contents(path, checkpoint.manifest, share_out(checkpoint.manifest, world.size)[world.rank])
    problems = [sentence for sentences in world.gather(own) for sentence in sentences]
    return checkpoint, not_whole(path, problems) if problems else None


def check_same_model(checkpoint: Checkpoint, identity: dict) -> None:
    """Raises UserError, naming what differs, if the checkpoint is of another model."""
    saved, here = flatten(checkpoint.state()["model"]), flatten(identity)
    for name in sorted(saved.keys() | here.keys()):
        if name.startswith("embedder.") and not (name in saved and name in here):
            # Another release of transformers may know more fields, or fewer, of the same architecture.
            continue
        there, own = saved.get(name, "absent"), here.get(name, "absent")
        if there != own:
            raise UserError(
                f"The checkpoint {checkpoint.path} belongs to another model or set-up: {name} is {there!r} there and "
                f"{own!r} in this run; restore the setting, or start a new run in another train.output_dir."
            )


def load_checkpoint(checkpoint: Checkpoint, engine: deepspeed.DeepSpeedEngine, world: World) -> dict:
    """Give the engine the checkpoint's parameters, buffers and optimiser; returns the objective's state.
    Hyper-parameters stay those of the recipe.

    Every rank calls this at the same time. The engine may have made steps of its own; nothing of them stays.

    Raises:
        UserError: the checkpoint's parameters are not the engine's, or a file is damaged.
    """
    state = checkpoint.state()
    with world.together():
        objective_state = read_objective(checkpoint.file(OBJECTIVE))
        saved = SavedParameters(checkpoint.files(PARAMETERS))
        check_same_parameters(checkpoint, saved, engine)
        restore_parts(engine, saved, state[OPTIMIZER_STEPS])
        restore_buffers(engine, TensorFile(checkpoint.file(BUFFERS)))
        checkpoint.require_unchanged()
    publish(engine)
    engine.global_steps, engine.global_samples = state["step"], state["step"] * engine.train_batch_size()
    return objective_state


def read_objective(path: Path) -> dict:
    """The objective's state in a file. Raises UserError if it is damaged, or holds what might run code."""
    try:
        return torch.load(io.BytesIO(read_bounded(path, _LARGEST_OBJECTIVE)), map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read safely: {error.strerror}.") from None
    # Torch meets damaged files with many types of exception (OSError, RuntimeError, UnpicklingError, KeyError, ...).
    except Exception as error:
        raise UserError(f"{path} cannot be read safely: {' '.join(str(error).split())[:300]}") from error


def check_same_parameters(checkpoint: Checkpoint, saved: SavedParameters, engine: deepspeed.DeepSpeedEngine) -> None:
    """Raises UserError if the checkpoint has other trained parameters than the engine, or of other shapes."""
    own = {
        name: tuple(getattr(value, "ds_shape", value.shape))
        for name, value in engine.module.named_parameters()
        if value.requires_grad and getattr(value, "ds_numel", value.numel())
    }
    for name in sorted(own.keys() | saved.shapes.keys()):
        if own.get(name) != saved.shapes.get(name):
            both = (saved.shapes, own)
            there, here = (str(list(shapes[name])) if name in shapes else "not trained" for shapes in both)
            raise UserError(
                f"The checkpoint {checkpoint.path} belongs to another model or set-up: {name} is {there} there and "
                f"{here} in this run."
            )


@torch.no_grad()
def restore_buffers(engine: deepspeed.DeepSpeedEngine, file: TensorFile) -> None:
    """Buffers that the file does not have stay as they are."""
    for name, buffer in persistent_buffers(engine.module).items():
        if name in file.entries:
            buffer.copy_(file.read_whole(name))
