"""What the ranks of a run have, and whether they do the same: cheap comparisons that name the rank that differs."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import pdfx
from pdfx.config import Config, dump_config
from pdfx.distributed.world import World
from pdfx.errors import UserError

PACKAGES = ("torch", "deepspeed", "transformers", "peft", "numpy")

PREFIXES = (
    "NCCL_",
    "TORCH_NCCL_",
    "GLOO_",
    "FI_",
    "UCX_",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
)
"""Variables that are logged."""
SAMPLED = 16
"""Tensors that one comparison looks at; the next one looks at those that follow, so that all get their turn."""
CURE = (
    "Start all ranks from the same code, recipe and files, and resume from the last checkpoint; if it is the same "
    "machine again and again, its memory or accelerator may be faulty."
)


def versions() -> list[str]:
    """Python's version and those of the packages whose arithmetic matters."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found += [f"CUDA {torch.version.cuda}", f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"]
    return found


def log_environment(world: World) -> None:
    """Print ``describe_environment`` on rank 0. Every rank calls this together."""
    lines = describe_environment(world)
    if world.rank == 0:
        print(*lines, sep="\n", flush=True)


def describe_environment(world: World) -> list[str]:
    """Sentences for the log. Every rank calls this together."""
    places = world.gather((socket.gethostname(), device_name(world.device)))
    lines = [f"pdfx {pdfx.__version__}{commit()}, {', '.join(versions())}.", describe_machines(places)]
    if "SLURM_JOB_ID" in os.environ:
        restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
        nodes = os.environ.get("SLURM_JOB_NODELIST", "unknown nodes")
        lines.append(f"SLURM job {os.environ['SLURM_JOB_ID']} on {nodes}, requeued {restarts} times before.")
    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(PREFIXES)]
    return lines + ([f"Variables of rank 0: {' '.join(variables)}"] if variables else [])


def describe_machines(places: list[tuple[str, str]]) -> str:
    """``places``: each rank's host and device."""
    by_host: dict[str, list[tuple[int, str]]] = {}
    for rank, (host, device) in enumerate(places):
        by_host.setdefault(host, []).append((rank, device))
    parts = []
    for host, ranks in by_host.items():
        devices = " and ".join(sorted({device for _, device in ranks}))
        parts.append(f"{host} ranks {', '.join(_ranges([rank for rank, _ in ranks]))} on {devices}")
    return f"{len(places)} ranks on {len(by_host)} machines: {'; '.join(parts)}."


def _ranges(numbers: list[int]) -> list[str]:
    """Numbers in rising order, those that follow one another as "first-last"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][-1] == number - 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return ["-".join(map(str, edges)) for edges in ranges]


def device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"the CPU ({torch.get_num_threads()} threads)"
    )


def commit() -> str:
    """The commit of pdfx's source tree, if it is one and git is there."""
    folder = Path(pdfx.__file__).parents[1]
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return ""
    git = ["git", "-C", str(folder)]
    ask = partial(subprocess.check_output, text=True, stderr=subprocess.DEVNULL, timeout=10)
    try:
        number = ask([*git, "rev-parse", "--short", "HEAD"]).strip()
        changed = ask([*git, "status", "--porcelain", "--untracked-files=no"])
    except (subprocess.SubprocessError, OSError):
        return ""
    return f" (commit {number}{' with changes' if changed else ''})"


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
    kept: list[torch.Tensor],
    turn: int,
) -> dict[str, str]:
    """What must be alike after a step.

    Args:
        position: the loader's counters.
        metrics: alike on all ranks, to the last bit.
        module: its whole parameters are compared, the frozen ones included, ``SAMPLED`` at a time. Shards of ZeRO-3 are
            each rank's own and are not.
        kept: what the objective keeps of earlier steps.
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
    if kept:
        state["what the objective keeps"] = checksum(kept)
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


def checksum(tensors: Sequence[torch.Tensor]) -> str:
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
