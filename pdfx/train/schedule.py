"""Learning rate and number of steps as pure functions, so that a checkpoint needs no scheduler state."""

from __future__ import annotations

import hashlib
import math

from pdfx.config import Config, TrainSection
from pdfx.errors import UserError

SHORT_WAY = 1e-3
"""A sum of learning rates that is too small to train anything: in a step Adam moves a weight by about the learning rate
at most. The value is ours."""


def learning_rate_factor(step: int, train: TrainSection, total_steps: int) -> float:
    """The factor on every group's learning rate in optimiser step ``step`` (counted from 1).

    It rises linearly and is 1 in step ``warmup_steps``; from there ``linear`` and ``cosine`` fall towards 0, which the
    step after the last one would have, so that no step is without effect.
    """
    if step <= train.warmup_steps:
        return step / train.warmup_steps
    if train.lr_scheduler_type == "constant":
        return 1.0
    progress = (step - max(train.warmup_steps, 1)) / max(total_steps + 1 - max(train.warmup_steps, 1), 1)
    return 1 - progress if train.lr_scheduler_type == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


def settle_warm_ups(config: Config, total_steps: int) -> list[str]:
    """Give the warm-ups that the recipe leaves open their number of steps, in place, and return sentences about the
    learning rate."""
    short, information, train = min(100, total_steps // 10), config.objective.mutual_information, config.train
    if train.warmup_steps is None:
        train.warmup_steps = short
    if information.warmup_steps is None and config.objective.diversity == "mutual_information":
        information.warmup_steps = short
    own = config.model.prefix.learning_rate or train.learning_rate
    rates = f"{train.learning_rate:g}" + (f" and, for prefixes, {own:g}" if own != train.learning_rate else "")
    told = [f"Learning rate {rates} after a warm-up of {train.warmup_steps} steps, then {train.lr_scheduler_type}."]
    way = train.learning_rate * sum(
        learning_rate_factor(step, train, total_steps) for step in range(1, total_steps + 1)
    )
    if way < SHORT_WAY:
        told.append(
            f"Warning: all {total_steps} steps together move a weight by about {way:.1g} at most, so this run will "
            "hardly learn anything; "
            "raise train.learning_rate, or train longer."
        )
    return told


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
    wanted = math.floor(train.num_train_epochs * samples)
    steps, rest = divmod(wanted, batch)
    if steps == 0:
        raise UserError(
            f"train.num_train_epochs {train.num_train_epochs} of {samples} samples are {wanted} pairs, fewer than "
            f"one global batch of {batch} ({origin}); "
            "lower train.per_device_train_batch_size or raise train.num_train_epochs."
        )
    sentence = f"{train.num_train_epochs:g} epochs of {samples} samples are {steps} steps of {batch} pairs ({origin})"
    return steps, sentence + (f"; the last {rest} pairs do not fill a batch and are left out." if rest else ".")


def global_batch(train: TrainSection, world_size: int) -> int:
    """Pairs that one optimiser step contrasts with one another."""
    return world_size * train.per_device_train_batch_size * train.gradient_accumulation_steps


def derived_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed that depends on all arguments: each random draw follows from the run's seed, what it is for, and
    where in the run it happens."""
    text = "/".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
