"""What a run ran with, logged once at its start: versions, commit, machines, devices, and the variables that steer
communication."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import pdfx
from pdfx.distributed.world import World

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


def tell_environment(world: World) -> None:
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
    options = {"capture_output": True, "text": True, "check": True, "timeout": 10}
    try:
        number = subprocess.run([*git, "rev-parse", "--short", "HEAD"], **options).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], **options).stdout.strip()
    except (subprocess.SubprocessError, OSError):
        return ""
    return f" (commit {number}{' with changes' if changed else ''})"
