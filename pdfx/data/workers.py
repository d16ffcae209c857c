"""Worker processes that read ahead, in a given order, and whose errors arrive as sentences."""

from __future__ import annotations

import io
import math
import multiprocessing
import os
import pickle
import pickletools
import signal
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pdfx.errors import UserError
from pdfx.host.console import open_streams
from pdfx.host.memory import keep_large_blocks

ALIGNMENT = 64
"""Bytes; each tensor begins at a multiple of them, as any type of number allows."""


@dataclass
class Parcel:
    """A result, packed: pickled with numbers in the place of tensors, and their bytes as one block, uint8 [bytes]."""

    skeleton: bytes
    shapes: list[tuple[torch.dtype, torch.Size, int]]
    """dtype, shape and first byte of each tensor."""
    block: Tensor

    @classmethod
    def of(cls, result: Any) -> Parcel:
        """Pack ``result``, any picklable object that may hold tensors of the host."""
        stream = io.BytesIO()
        pickler = _Pickler(stream)
        pickler.dump(result)
        shapes, stop = [], 0
        for tensor in pickler.tensors:
            shapes.append((tensor.dtype, tensor.shape, stop))
            stop += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        block = torch.empty(stop, dtype=torch.uint8)
        for tensor, (_, _, start) in zip(pickler.tensors, shapes, strict=True):
            block[start : start + tensor.nbytes] = tensor.contiguous().reshape(-1).view(torch.uint8)
        return cls(stream.getvalue(), shapes, block)

    def open(self) -> Any:
        """The result; its tensors are views of the block."""
        tensors = [
            self.block[start : start + shape.numel() * dtype.itemsize].view(dtype).reshape(shape)
            for dtype, shape, start in self.shapes
        ]
        return _Unpickler(io.BytesIO(self.skeleton), tensors).load()

    def pin_memory(self) -> Parcel:
        """A copy in page-locked memory; torch's DataLoader calls this if it is asked to pin."""
        return Parcel(self.skeleton, self.shapes, self.block.pin_memory())


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO):
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, item: Any) -> int | None:
        if type(item) is not Tensor:
            return None
        if id(item) not in self._numbers:
            self._numbers[id(item)] = len(self.tensors)
            self.tensors.append(item)
        return self._numbers[id(item)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, tensors: list[Tensor]):
        super().__init__(stream)
        self._tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self._tensors[number]


_METHOD = "forkserver"
"""A fork of the trainer would inherit the locks of threads that do not exist in the child (collectives, tokenizers,
loggers); a server that was started clean and forks itself has no such threads. Measured on two cores: 1.2 s for the
first start, 0.03 s after it; "spawn" takes 1.2 s always."""


JOB_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}
"""Launchers send them to every process of a job; what to do then (save a checkpoint, say) is for the main process,
which needs its workers meanwhile."""


@dataclass
class Caught:
    """A worker's UserError on its way to the main process; raised, it would arrive wrapped in a stack trace."""

    message: str


class CatchingDataset(Dataset):
    """Turns UserErrors into values, and packs results that are sent to another process."""

    def __init__(self, job: Any, pack: bool):
        self.job, self.pack = job, pack

    def __getitem__(self, request: Any) -> Any:
        try:
            result = self.job(request)
        except UserError as error:
            return Caught(str(error))
        return Parcel.of(result) if self.pack else result


def run_ahead(
    job: Any, requests: Iterable[Any], num_workers: int, prefetch: int, seed: int, pin_memory: bool = False
) -> Iterator[Any]:
    """Yields ``job(request)`` for each request, in order, whatever ``num_workers`` is (0: in this process).

    Args:
        job: a picklable callable.
        prefetch: results held ready, over all workers.
        seed: of the workers' global random states; the main process's are not touched.

    Raises:
        UserError: what the job raises; or ``job`` cannot be sent to workers, or a worker was killed.
    """
    options: dict[str, Any] = {"num_workers": num_workers, "pin_memory": pin_memory}
    if num_workers > 0:
        context = multiprocessing.get_context(_METHOD)
        context.set_forkserver_preload(["__main__", __name__, *_modules_of(job)])
        options |= {
            "multiprocessing_context": context,
            "worker_init_fn": _start_worker,
            "prefetch_factor": math.ceil(prefetch / num_workers),
        }
    loader = DataLoader(
        CatchingDataset(job, num_workers > 0),
        batch_size=None,
        sampler=requests,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )
    with _deaf_children():
        return _Results(iter(loader), num_workers > 0)


class _Results:
    def __init__(self, iterator: Iterator[Any], has_workers: bool):
        holder = [iterator]
        self._holder, self._has_workers = holder, has_workers
        # Dropped at the latest when the interpreter ends, before multiprocessing waits for its children: dropping it is
        # what stops workers.
        self._finalizer = weakref.finalize(self, holder.clear)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            result = next(self._holder[0])
        except (RuntimeError, ConnectionError, EOFError) as error:
            # A worker that dies while its batch is handed over breaks the connection that the batch comes through.
            is_death = "DataLoader worker" in str(error) if isinstance(error, RuntimeError) else self._has_workers
            # What the job itself raised comes with its own stack.
            if not is_death or "Original Traceback" in str(error):
                raise
            raise UserError(
                "A data worker was killed, most often because memory or /dev/shm ran out; lower data.num_workers or "
                "data.prefetch_batches. (It also happens if a worker cannot import the processor's class; "
                "data.num_workers=0 shows such an error in full.)"
            ) from error
        if isinstance(result, Caught):
            raise UserError(result.message)
        return result.open() if isinstance(result, Parcel) else result


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that start in the block never hear ``JOB_SIGNALS``. The server that workers are forked from would end
    at them, and with it the workers count as dead."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
    try:
        # It comes with the first worker, and lets go of some signals again while it starts.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(_: int) -> None:
    open_streams()
    for number in JOB_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # torch's own watchdog asks for the parent's process number, which is the server's here and outlives a trainer that
    # was killed.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # A picture is a large block that is soon freed; taken from the system and cleared each time, it costs a fifth
    # of a worker's time.
    keep_large_blocks()
    # torch itself limits its threads to one in workers; the tokenizers library would still start one per core in each.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        connection.wait([parent.sentinel])
    os._exit(1)


def _modules_of(job: Any) -> list[str]:
    """The modules that workers must import before they can unpickle ``job``: the server imports them once for all."""
    try:
        pickled = pickle.dumps(job)
    except Exception as error:  # any class may raise anything while it is pickled
        raise UserError(
            f"The processor cannot be sent to data workers ({error}); define its class at the top of an importable "
            "module, or set data.num_workers=0."
        ) from None
    strings = {str(argument) for opcode, argument, _ in pickletools.genops(pickled) if opcode.name.endswith("UNICODE")}
    return sorted(strings & sys.modules.keys() - {"__main__"})
