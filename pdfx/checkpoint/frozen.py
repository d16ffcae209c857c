"""A fingerprint of the weights that are not trained, which a checkpoint does not hold: the same in whatever pieces they
are read, on any number of ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from pdfx.checkpoint.directory import Checkpoint
from pdfx.errors import UserError

FROZEN = "frozen_weights"
"""Key of ``Checkpoint.state``."""
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_sum(values: Tensor) -> int:
    """The sum of the values' bits, read as integers: exact in any order, and changed by nearly any change of a
    weight."""
    return int(values.detach().reshape(-1).view(INTEGERS[values.element_size()]).sum(dtype=torch.int64))


def fingerprint(parts: Iterable[dict[str, int]]) -> str:
    """Of the sums by the weights' names in the training module; those of a weight's parts are added up."""
    totals: dict[str, int] = {}
    for part in parts:
        for name, value in part.items():
            totals[name] = (totals.get(name, 0) + value) % 2**64
    return hashlib.sha256("".join(f"{name} {totals[name]}\n" for name in sorted(totals)).encode()).hexdigest()


def check_same_frozen_weights(checkpoint: Checkpoint, frozen: str, model_path: str) -> None:
    """Raises UserError if the weights that the checkpoint does not hold are not those it was trained on."""
    # Older checkpoints have no fingerprint.
    if checkpoint.state().get(FROZEN, frozen) != frozen:
        raise UserError(
            f"The frozen weights of model.path '{model_path}' are not those that {checkpoint.path} was trained on; "
            "give the same backbone."
        )
