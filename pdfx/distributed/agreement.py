"""Whether all ranks do the same: cheap comparisons of what must be alike, which name the rank that differs."""

from __future__ import annotations

import hashlib
import json
import socket
from collections import Counter
from pathlib import Path

import torch

import pdfx
from pdfx.config import Config, dump_config
from pdfx.distributed.environment import versions
from pdfx.distributed.world import World
from pdfx.errors import UserError

SAMPLED = 16
"""Tensors of the model that one comparison looks at; the next one looks at the following ones, so that all get their
turn."""

CURE = (
    "Start all ranks from the same code, recipe and files, and resume from the last checkpoint; if it is the same "
    "machine again and again, its memory or "
    "accelerator may be faulty."
)


def settings_of_start(config: Config) -> dict[str, str]:
    """What must be alike before the first step."""
    return {
        "the recipe": short_hash(dump_config(config)),
        "the code of pdfx": code_hash(),
        "the versions of packages": ", ".join(versions()),
    }


def state_of_step(
    step: int,
    position: dict,
    metrics: dict[str, float],
    module: torch.nn.Module,
    variational: torch.nn.Module | None,
    turn: int,
) -> dict[str, str]:
    """What must be alike after a step.

    Args:
        position: the loader's counters.
        metrics: alike on all ranks, to the last bit.
        module: its whole parameters are compared, the frozen ones included, ``SAMPLED`` at a time. Shards of ZeRO-3 are
            each rank's own and are not.
        variational: replicated networks.
        turn: number of this comparison.
    """
    exact = json.dumps({name: float(value).hex() for name, value in sorted(metrics.items())})
    state = {
        "the step": str(step),
        "the position in the data": short_hash(json.dumps(position, sort_keys=True)),
        "the metrics": short_hash(exact),
    }
    whole = [parameter for parameter in module.parameters() if parameter.numel() > 0]
    if whole:
        chosen = [whole[(turn * SAMPLED + number) % len(whole)] for number in range(min(SAMPLED, len(whole)))]
        state["the parameters"] = checksum(chosen)
    if variational is not None:
        state["the variational networks"] = checksum(list(variational.parameters()))
    return state


def require_agreement(world: World, state: dict[str, str], when: str) -> None:
    """Compare ``state`` over ranks, all of which call this at the same time.

    Raises:
        UserError: some ranks differ; they are named. Raised on all ranks.
    """
    hosts_and_states = world.gather((socket.gethostname(), state))
    for name in state:
        values = [other.get(name) for _, other in hosts_and_states]
        (usual, _), *others = Counter(values).most_common()
        if others:
            differing = [rank for rank, value in enumerate(values) if value != usual]
            shown = ", ".join(f"{values[rank]} on rank {rank} ({hosts_and_states[rank][0]})" for rank in differing[:4])
            shown += f" and {len(differing) - 4} more" if len(differing) > 4 else ""
            first = values.index(usual)
            raise UserError(
                f"The ranks are out of step {when}: {name} is {shown}, but {usual} on rank {first} "
                f"({hosts_and_states[first][0]}). {CURE}"
            )


def checksum(tensors: list[torch.Tensor]) -> str:
    """A sum over the bits of tensors; exact, and so independent of the order of adding."""
    sums = []
    for tensor in tensors:
        bits = (
            tensor.detach()
            .contiguous()
            .view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
        )
        sums.append(bits.sum(dtype=torch.int64))
    return short_hash(repr(torch.stack(sums).tolist()))


def code_hash() -> str:
    """Of all Python files of pdfx."""
    folder = Path(pdfx.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
