"""Going on from a checkpoint with another number of ranks or another stage of ZeRO.

Checkpoints hold parameters and optimiser states by parameter, whatever sharded them, and the loader's state is a
position; so the one thing to keep is the global batch, which decides what a step learns from.
"""

from __future__ import annotations

from pathlib import Path

from pdfx.config import Config
from pdfx.errors import UserError
from pdfx.train.schedule import global_batch

SHARDING = "sharding"
"""Key of ``Checkpoint.state``."""


def sharding(config: Config, stage: int, ranks: int) -> dict[str, int]:
    """How a run is shared out, for its checkpoints."""
    return {"ranks": ranks, "zero_stage": stage, "global_batch": global_batch(config.train, ranks)}


def take_over(config: Config, saved: dict[str, int], stage: int, ranks: int, path: Path) -> list[str]:
    """Let the recipe go on from a checkpoint that was shared out as ``saved`` says, with its global batch; returns what
    there is to tell.

    With ``train.resume_elastic``, ``train.gradient_accumulation_steps`` follows from the checkpoint's global batch:
    also where ranks and stage are those of the checkpoint, which an earlier elastic resume may have written.

    Raises:
        UserError: they differ and ``train.resume_elastic`` is not set, or the batch cannot be made of this run's ranks.
    """
    train, pairs, here = config.train, saved["global_batch"], global_batch(config.train, ranks)
    same = (saved["ranks"], saved["zero_stage"]) == (ranks, stage)
    if same and here == pairs:
        return []
    if same and not train.resume_elastic:
        return [f"The global batch was {pairs} pairs up to the checkpoint and is {here} from here on."]
    change = (
        f"{path} was saved by {count(saved['ranks'])} under ZeRO-{saved['zero_stage']}, and this run has "
        f"{count(ranks)} under ZeRO-{stage}"
    )
    if not train.resume_elastic:
        raise UserError(
            f"The checkpoint {change}; set train.resume_elastic=true to go on like this, or start the run as it was."
        )
    chunk = ranks * train.per_device_train_batch_size
    if pairs % chunk:
        sizes = [size for size in range(1, train.per_device_train_batch_size + 1) if pairs % (ranks * size) == 0]
        cure = (
            f"set train.per_device_train_batch_size to {sizes[-1]}"
            if sizes
            else f"use a number of ranks that divides {pairs}"
        )
        raise UserError(
            f"The checkpoint {change}; its global batch of {pairs} pairs cannot be made of {count(ranks)} x "
            f"{train.per_device_train_batch_size} pairs: {cure}."
        )
    told = [] if same else [f"The checkpoint {change}: its parameters and optimiser states are shared out anew."]
    if train.gradient_accumulation_steps != pairs // chunk:
        before = train.gradient_accumulation_steps
        told.append(
            f"train.gradient_accumulation_steps is {pairs // chunk} instead of {before}, so that the global batch "
            f"stays {pairs} pairs."
        )
        train.gradient_accumulation_steps = pairs // chunk
    if ranks != saved["ranks"] and config.objective.diversity == "mutual_information":
        told.append(
            "Mutual information is estimated per rank, so with another number of ranks its values differ a little."
        )
    return told


def count(ranks: int) -> str:
    return f"{ranks} rank{'s' if ranks > 1 else ''}"
