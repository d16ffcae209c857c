"""A checkpoint is a transaction: written beside, synced, listed in a manifest, and made current by one rename.

A directory ``checkpoints/step-00000100`` holds ``zero/`` (DeepSpeed's shards: parameters, masters, optimiser), ``state/`` (everything else that the next step
depends on), ``probe/`` (see ``pdfx.train.probe``), the resolved ``config.yaml`` and ``manifest.json`` with every file's size.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import deepspeed
import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.utils.tensor_fragment import fragment_address

from pdfx.errors import UserError
from pdfx.train.cluster import World
from pdfx.train.engine import flatten, quiet_deepspeed

DIRECTORY = "checkpoints"
ZERO_TAG = "zero"
PARTIAL = ".partial"
MANIFEST = "manifest.json"
STATE = "state/trainer.json"
OBJECTIVE = "state/objective.pt"
VERSION = 1

DEEPSPEED_CLASSES = [LossScaler, DynamicLossScaler, fragment_address]
"""What DeepSpeed's files hold beside tensors and plain values."""


class SafeCheckpointEngine(TorchCheckpointEngine):
    """Reads DeepSpeed's files without running code that might hide in them, and syncs what it writes."""

    def save(self, state_dict, path: str) -> None:
        super().save(without_enums(state_dict), path)
        sync(path)

    def load(self, path: str, map_location=None):
        with torch.serialization.safe_globals(DEEPSPEED_CLASSES):
            return torch.load(path, map_location=map_location, weights_only=True)


def without_enums(tree):
    """Nested dictionaries with the numbers that enumeration members stand for.

    Python 3.11.0 to 3.11.3 pickle a member as a call of ``getattr``, which no reader should have to allow.
    """
    if type(tree) is dict:
        return {key: without_enums(value) for key, value in tree.items()}
    return tree.value if isinstance(tree, Enum) else tree


@dataclass
class Checkpoint:
    """A whole checkpoint on disk.

    Attributes:
        path: its directory.
        step: optimiser steps that it has behind it.
    """

    path: Path
    step: int

    def state(self) -> dict:
        """The trainer's plain values: step, loader counters, model identity, world size."""
        return json.loads((self.path / STATE).read_text(encoding="utf-8"))


def directory_name(step: int) -> str:
    return f"step-{step:08d}"


def save_checkpoint(
    run: Path, step: int, engine: deepspeed.DeepSpeedEngine, state: dict, objective_state: dict, config_text: str, world: World, write_probe, keep: int
) -> Path:
    """Write a checkpoint of optimiser step ``step``. Every rank calls this at the same time; the run directory must be seen by all of them.

    Args:
        state: plain values for ``Checkpoint.state``.
        write_probe: called on every rank with the probe's directory.
        keep: number of newest checkpoints that stay.
    """
    final = run / DIRECTORY / directory_name(step)
    partial = final.with_name(final.name + PARTIAL)
    if world.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "state").mkdir(parents=True)
    world.barrier()
    with quiet_deepspeed(), safe_files(engine):
        # Frozen weights are read again from model.path, so a LoRA checkpoint is small.
        engine.save_checkpoint(str(partial), tag=ZERO_TAG, exclude_frozen_parameters=True)
    write_probe(partial / "probe")
    if world.rank == 0:
        (partial / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        (partial / "config.yaml").write_text(config_text, encoding="utf-8")
        torch.save(objective_state, partial / OBJECTIVE)
    world.barrier()
    if world.rank == 0:
        seal(partial, final, step)
        prune(run, keep)
    world.barrier()
    return final


def seal(partial: Path, final: Path, step: int) -> None:
    """List every file's size, and make the directory current."""
    files = {str(path.relative_to(partial)): path.stat().st_size for path in sorted(partial.rglob("*")) if path.is_file()}
    (partial / MANIFEST).write_text(json.dumps({"version": VERSION, "step": step, "files": files}, indent=1), encoding="utf-8")
    for path in [*partial.rglob("*"), partial]:
        sync(path)
    if final.exists():
        # Only a run that goes on from an older checkpoint meets its own later ones again.
        shutil.rmtree(final)
    partial.rename(final)
    sync(final.parent)


def prune(run: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints."""
    for path in checkpoint_paths(run)[keep:]:
        # The manifest goes first, so that a checkpoint half removed is not taken for a whole one.
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)


def checkpoint_paths(run: Path) -> list[Path]:
    """The run's checkpoint directories, newest first."""
    return sorted((path for path in (run / DIRECTORY).glob("step-*") if path.is_dir() and not path.name.endswith(PARTIAL)), reverse=True)


def newest_whole(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of a run, if any, and one sentence per newer one that was passed over."""
    passed_over = []
    for path in checkpoint_paths(run):
        try:
            return open_checkpoint(path), passed_over
        except UserError as error:
            passed_over.append(str(error))
    return None, passed_over


def open_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint whose every file has the size that its manifest says.

    Raises:
        UserError: it is not whole.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files, step = dict(manifest["files"]), int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no whole checkpoint: it has no readable {MANIFEST}.") from None
    for name, size in files.items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{path} is no whole checkpoint: {name} is missing.")
        if file.stat().st_size != size:
            raise UserError(f"{path} is no whole checkpoint: {name} has {file.stat().st_size} bytes instead of {size}.")
    return Checkpoint(path, step)


def find_checkpoint(run: Path, resume: str) -> tuple[Checkpoint | None, list[str]]:
    """What ``train.resume`` asks for: the checkpoint, if any, and sentences about those that were passed over.

    Raises:
        UserError: a checkpoint named by its directory is not whole.
    """
    if resume == "never":
        return None, []
    return newest_whole(run) if resume == "auto" else (open_checkpoint(Path(resume)), [])


def load_checkpoint(checkpoint: Checkpoint, engine: deepspeed.DeepSpeedEngine) -> dict:
    """Give the engine the checkpoint's parameters and optimiser; returns the objective's state. Hyper-parameters stay those of the recipe."""
    settings = [{name: value for name, value in group.items() if name != "params"} for group in engine.optimizer.param_groups]
    with quiet_deepspeed(), safe_files(engine):
        # Not strict, because frozen parameters are not in the files; ``check_same_model`` compared the rest.
        engine.load_checkpoint(str(checkpoint.path), tag=ZERO_TAG, load_module_strict=False)
    for group, own in zip(engine.optimizer.param_groups, settings, strict=True):
        group.update(own)
    return torch.load(checkpoint.path / OBJECTIVE, map_location="cpu", weights_only=True)


def check_same_model(checkpoint: Checkpoint, identity: dict) -> None:
    """Raises UserError, naming what differs, where the checkpoint is of another model or another way of sharding it."""
    saved, here = flatten(checkpoint.state()["model"]), flatten(identity)
    for name in sorted(saved.keys() | here.keys()):
        if name.startswith("embedder.") and not (name in saved and name in here):
            # Another release of transformers may know more fields, or fewer, of the same architecture.
            continue
        there, own = saved.get(name, "absent"), here.get(name, "absent")
        if there != own:
            raise UserError(
                f"The checkpoint {checkpoint.path} belongs to another model or set-up: {name} is {there!r} there and {own!r} in this run; "
                "restore the setting, or start anew in another train.output_dir."
            )


@contextmanager
def safe_files(engine: deepspeed.DeepSpeedEngine):
    """Let the engine read and write its files through ``SafeCheckpointEngine``."""
    usual = engine.checkpoint_engine
    engine.checkpoint_engine = SafeCheckpointEngine(engine._config)
    try:
        yield
    finally:
        engine.checkpoint_engine = usual


def sync(path: Path | str) -> None:
    """Wait until a file or a directory's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
