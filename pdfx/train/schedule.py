"""Learning rate, number of steps and size of a step as pure functions, so that a checkpoint needs no scheduler state.

Another number of ranks, or another stage of ZeRO, may resume a checkpoint: it holds parameters and optimiser states by
parameter, whatever sharded them, and the loader's state is a position. So the one thing to keep is the global batch,
which decides what a step learns from.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from pdfx.config import Config, TrainSection
from pdfx.errors import UserError

SHARDING = "sharding"
"""Key of ``Checkpoint.state``."""
SHORT_WAY = 1e-3
"""A sum of learning rates too small to train: a step of Adam moves a weight by one at most. The value is ours."""


def learning_rate_factor(step: int, train: TrainSection, total_steps: int) -> float:
    """The factor on every group's learning rate in optimiser step ``step`` (counted from 1).

    It rises linearly and is 1 in step ``warmup_steps``; from there ``linear`` and ``cosine`` fall towards 0, which the
    step after the last one would have, so that no step is without effect.
    """
    warm_up = train.warmup_steps or 0
    if step <= warm_up:
        return step / warm_up
    if train.lr_scheduler_type == "constant":
        return 1.0
    progress = (step - max(warm_up, 1)) / max(total_steps + 1 - max(warm_up, 1), 1)
    return 1 - progress if train.lr_scheduler_type == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


def settle_warm_ups(config: Config, total_steps: int) -> list[str]:
    """Settle, in place, the warm-ups that the recipe leaves open; returns sentences about the learning rate."""
    short, train = min(100, total_steps // 10), config.train
    if train.warmup_steps is None:
        train.warmup_steps = short
    own = config.model.prefix.learning_rate or train.learning_rate
    rates = f"{train.learning_rate:g}" + (f" and, for prefixes, {own:g}" if own != train.learning_rate else "")
    notes = [f"Learning rate {rates} after a warm-up of {train.warmup_steps} steps, then {train.lr_scheduler_type}."]
    way = train.learning_rate * sum(
        learning_rate_factor(step, train, total_steps) for step in range(1, total_steps + 1)
    )
    if way < SHORT_WAY:
        notes.append(
            f"Warning: all {total_steps} steps together move a weight by about {way:.1g} at most, so this run will "
            "hardly learn anything; raise train.learning_rate, or train longer."
        )
    return notes


def count_steps(train: TrainSection, samples: int, world_size: int) -> tuple[int, str]:
    """Optimiser steps of the run, and a sentence that says how they follow from the data.

    Raises:
        UserError: ``num_train_epochs`` make less than one step.
    """
    batch = global_batch(train, world_size)
    origin = (
        f"{world_size} ranks x {train.per_device_train_batch_size} pairs x {train.gradient_accumulation_steps} "
        "accumulation steps"
    )
    if train.max_steps is not None:
        epochs = train.max_steps * batch / samples
        return (
            train.max_steps,
            f"{train.max_steps} steps of {batch} pairs ({origin}) are {epochs:.2f} epochs of {samples} samples.",
        )
    epochs = train.num_train_epochs or 0
    wanted = math.floor(epochs * samples)
    steps, rest = divmod(wanted, batch)
    if steps == 0:
        raise UserError(
            f"train.num_train_epochs {epochs} of {samples} samples are {wanted} pairs, fewer than "
            f"one global batch of {batch} ({origin}); "
            "lower train.per_device_train_batch_size or raise train.num_train_epochs."
        )
    sentence = f"{epochs:g} epochs of {samples} samples are {steps} steps of {batch} pairs ({origin})"
    return steps, sentence + (f"; the last {rest} pairs do not fill a batch and are left out." if rest else ".")


def global_batch(train: TrainSection, world_size: int) -> int:
    """Pairs that one optimiser step contrasts with one another."""
    return world_size * train.per_device_train_batch_size * train.gradient_accumulation_steps


def sharding(config: Config, stage: int, ranks: int) -> dict[str, int]:
    """How a run is shared out, for its checkpoints."""
    return {"ranks": ranks, "zero_stage": stage, "global_batch": global_batch(config.train, ranks)}


def take_over(config: Config, saved: dict[str, int], stage: int, ranks: int, path: Path) -> list[str]:
    """Let the recipe resume from a checkpoint that was sharded as ``saved`` says, with its global batch; returns what
    to log.

    With ``train.resume_elastic``, ``train.gradient_accumulation_steps`` follows from the checkpoint's global batch:
    also if ranks and stage are those of the checkpoint, which an earlier elastic resume may have written.

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
            f"The checkpoint {change}; set train.resume_elastic=true to resume like this, or start the run as it was."
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
    notes = [] if same else [f"The checkpoint {change}: its parameters and optimiser states are sharded again."]
    if train.gradient_accumulation_steps != pairs // chunk:
        before = train.gradient_accumulation_steps
        notes.append(
            f"train.gradient_accumulation_steps is {pairs // chunk} instead of {before}, so that the global batch "
            f"stays {pairs} pairs."
        )
        train.gradient_accumulation_steps = pairs // chunk
    if ranks != saved["ranks"] and config.objective.diversity != "none" and config.objective.diversity_scope == "rank":
        notes.append(
            "The diversity term is about the pairs of each rank (objective.diversity_scope), so with another number of "
            "ranks its values differ a little."
        )
    return notes


def count(ranks: int) -> str:
    return f"{ranks} rank{'s' if ranks > 1 else ''}"


def derived_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed of the run's seed, what a random draw is for, and where in the run it happens."""
    text = "/".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
