"""The state of a checkpoint in the making: its copy in host memory, each rank's files, and what rank 0 adds."""

from __future__ import annotations

import io
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from pdfx.checkpoint.directory import BUFFERS, OBJECTIVE, PARAMETERS, PROBE, STATE, remove_unfinished
from pdfx.checkpoint.manifest import Metric
from pdfx.checkpoint.parameters import parts_metadata
from pdfx.checkpoint.zero_shards import ParameterPart
from pdfx.config.run_files import CONFIG
from pdfx.distributed.world import World
from pdfx.errors import UserError
from pdfx.host.files import FileRecord, read_record, sync, write_checksummed
from pdfx.host.memory import available_bytes
from pdfx.host.tensor_files import Entry, write_tensors

SHARE = 0.5
"""Share of a machine's available memory that the copies of its ranks may take. The value is ours: data workers and the
files' cache need the rest."""

Flats = dict[str, list[Tensor]]
"""Flat tensors by kind, see ``zero_shards.flat_tensors``."""


class HostCopy:
    """Buffers that are made at the first copy and kept, because new memory costs more time than copying."""

    def __init__(self) -> None:
        self.buffers: Flats = {}

    def take(self, flats: Flats) -> Flats:
        """Copy the tensors as they are now; what the last call returned is overwritten."""
        pinned = any(tensor.is_cuda for tensors in flats.values() for tensor in tensors)
        if not self.buffers:
            self.buffers = {
                kind: [torch.empty_like(tensor, device="cpu", pin_memory=pinned) for tensor in tensors]
                for kind, tensors in flats.items()
            }
        for kind, tensors in flats.items():
            for buffer, tensor in zip(self.buffers[kind], tensors, strict=True):
                buffer.copy_(tensor, non_blocking=True)
        if pinned:
            torch.cuda.synchronize()
        return self.buffers


@dataclass(frozen=True)
class Need:
    """What one rank's copy takes of its machine, in bytes, and what the machine has available."""

    host: str
    bytes: int
    available: int


def choose_background(setting: bool | str, flats: Flats, world: World) -> tuple[bool, str]:
    """Whether checkpoints are written in the background, the same on all ranks, and a sentence that says so and why.

    Args:
        setting: ``train.save_in_background``.
    """
    if setting != "auto":
        how = "in the background" if setting else "while training waits"
        return bool(setting), f"Checkpoints are written {how}, as train.save_in_background says."
    own = sum(tensor.nbytes for tensors in flats.values() for tensor in tensors)
    return by_memory(world.gather(Need(socket.gethostname(), own, available_bytes())))


def by_memory(needs: list[Need]) -> tuple[bool, str]:
    """The same by the ranks' needs: on no machine may the copies take more than ``SHARE`` of its available memory."""
    hosts = {need.host for need in needs}
    taken = {host: sum(need.bytes for need in needs if need.host == host) for host in hosts}
    available = {host: min(need.available for need in needs if need.host == host) for host in hosts}
    fullest = max(sorted(hosts), key=lambda host: taken[host] / max(available[host], 1))
    background = taken[fullest] <= SHARE * available[fullest]
    how, bound = ("in the background", "at most") if background else ("while training waits", "more than")
    return background, (
        f"Checkpoints are written {how}: copies take {taken[fullest] / 2**30:.2f} GiB, {bound} {SHARE:.0%} of the "
        f"{available[fullest] / 2**30:.1f} GiB free on {fullest}."
    )


Result = TypeVar("Result")
Records = dict[str, FileRecord]


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds beside parameters and optimiser; the same on every rank."""

    step: int
    state: dict
    """Plain values for ``Checkpoint.state``."""
    objective: dict
    config: str
    """YAML"""
    write_probe: Callable[[Path], None]
    """Called on every rank with the probe's directory."""
    metric: Metric | None = None


def start_job(work: Callable[[], Result], background: bool) -> Future[Result]:
    """Run ``work`` once; in the background, in a thread that ends with the process."""
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)

    threading.Thread(target=run, name="pdfx checkpoint", daemon=True).start() if background else run()
    return done


def make_partial(run: Path, partial: Path) -> None:
    """The empty directory to write into; what killed saves left goes. Raises UserError if it cannot be made."""
    try:
        remove_unfinished(run)
        for name in (PARAMETERS, "state"):
            (partial / name).mkdir(parents=True)
    except OSError as error:
        raise UserError(told_failure(partial, error)) from error


def write_parts(path: Path, parts: list[ParameterPart], flats: Flats) -> FileRecord:
    """This rank's parts of parameters and states as one safetensors file, kind by kind."""
    entries = [
        (Entry(f"{kind}/{part.name}", tensors[part.flat].dtype, (part.count,)), on_host(part, tensors))
        for kind, tensors in flats.items()
        for part in parts
    ]
    return write_tensors(
        path,
        entries,
        parts_metadata({part.name: part.start for part in parts}, {part.name: part.shape for part in parts}),
    )


def on_host(part: ParameterPart, tensors: list[Tensor]) -> Iterator[Tensor]:
    """The part as one piece, taken from its device when it is asked for."""
    yield part.of(tensors).cpu()


def first_part(partial: Path, content: Content, buffers: dict[str, Tensor]) -> Callable[[], Records]:
    """What rank 0 writes beside its parameters, taken now."""
    stream = io.BytesIO()
    torch.save(content.objective, stream)
    files = {
        STATE: json.dumps(content.state, indent=1).encode(),
        CONFIG: content.config.encode(),
        OBJECTIVE: stream.getvalue(),
    }
    kept = {name: buffer.detach().cpu().clone() for name, buffer in buffers.items()}

    def write() -> Records:
        records = {name: write_checksummed(partial / name, data) for name, data in files.items()}
        entries = [(Entry(name, tensor.dtype, tuple(tensor.shape)), [tensor]) for name, tensor in kept.items()]
        records[BUFFERS] = write_tensors(partial / BUFFERS, entries, {})
        for path in sorted((partial / PROBE).iterdir()):
            sync(path)
            records[f"{PROBE}/{path.name}"] = read_record(path)
        return records

    return write


def told_failure(path: Path, error: BaseException) -> str:
    """The sentence about a checkpoint that could not be written, which ends the run: later work could be lost."""
    reason = (
        f"{os.strerror(error.errno)} ({error.filename or path})"
        if isinstance(error, OSError) and error.errno
        else f"{type(error).__name__}: {error}"
    )
    return (
        f"The checkpoint {path} could not be written: {reason}; free or fix that disk, then the same command resumes "
        "from the newest whole checkpoint."
    )
