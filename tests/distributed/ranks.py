"""Real ranks for tests: W processes with a gloo process group that run functions together, again and again.

>>> with Ranks(2) as ranks:
...     results = ranks.run(function, argument, timeout=60)     # [what rank 0 returned, what rank 1 returned]

A failure or a timeout ends all ranks and is told with every rank's exception, or the place where it waited; the next
``run`` starts new ones.
"""

import faulthandler
import gc
import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path

import torch
import torch.distributed as dist
import warm

from pdfx.distributed.world import free_port

START_TIMEOUT = 120
"""Seconds for importing torch and meeting the other ranks on a busy machine."""


class RankFailure(AssertionError):
    """At least one rank failed or took too long; the message holds what each did."""


class Ranks:
    """A context with W ranks, which start at the first ``run``.

    Args:
        size: W.
    """

    def __init__(self, size: int):
        self.size = size
        self.folder = tempfile.TemporaryDirectory()
        self.processes: list = []
        self.pipes: list = []

    def __enter__(self) -> "Ranks":
        return self

    def _start(self) -> None:
        port = free_port()
        for rank in range(self.size):
            here, there = multiprocessing.Pipe()
            key = bytes(multiprocessing.current_process().authkey)
            own = (rank, self.size, port, there.fileno(), str(self._dump(rank)), key)
            code = f"import sys; sys.path[:] = {sys.path}; from distributed.ranks import serve; serve(*{own})"
            process = warm.Popen([sys.executable, "-c", code], pass_fds=[there.fileno()])
            there.close()
            self.processes.append(process)
            self.pipes.append(here)
        self._collect(START_TIMEOUT, "start")

    def __exit__(self, *_) -> None:
        for pipe in self.pipes:
            try:
                pipe.send(None)
            except OSError:
                continue
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
        self._kill()
        self.folder.cleanup()

    def run(self, function: Callable, *arguments, timeout: float = 120) -> list:
        """Call ``function(*arguments)`` in every rank and return what each returned, by rank.

        Args:
            function: defined at the top of a file, from which each rank loads it.
            timeout: seconds until the ranks count as hanging.

        Raises:
            RankFailure: see above; the ranks are gone then.
        """
        if not self.processes:
            self._start()
        place = (function.__code__.co_filename, function.__qualname__)
        for pipe in self.pipes:
            pipe.send((place, arguments))
        return self._collect(timeout, function.__qualname__)

    def _collect(self, timeout: float, what: str) -> list:
        """One answer of each rank; as soon as one failed, the others get a moment to fail as well and are then asked
        where they wait."""
        answers: dict[int, tuple] = {}
        deadline = time.monotonic() + timeout
        while len(answers) < self.size and time.monotonic() < deadline:
            waiting = {self.pipes[rank]: rank for rank in range(self.size) if rank not in answers}
            for pipe in connection.wait(list(waiting), timeout=max(deadline - time.monotonic(), 0)):
                try:
                    answers[waiting[pipe]] = pipe.recv()
                except (EOFError, ConnectionResetError):
                    code = self.processes[waiting[pipe]].wait(5)
                    answers[waiting[pipe]] = ("failed", f"the process died with exit code {code}")
                if answers[waiting[pipe]][0] == "failed":
                    deadline = min(deadline, time.monotonic() + 5)
        if len(answers) == self.size and all(kind == "returned" for kind, _ in answers.values()):
            return [answers[rank][1] for rank in range(self.size)]
        stories = [
            f"rank {rank}: {answers[rank][1] if rank in answers else self._where(rank)}" for rank in range(self.size)
        ]
        self._kill()
        raise RankFailure(f"{what} failed or took longer than {timeout} s.\n" + "\n".join(stories))

    def _where(self, rank: int) -> str:
        """The stack of a rank that still runs."""
        os.kill(self.processes[rank].pid, signal.SIGUSR2)
        time.sleep(1)
        dump = self._dump(rank)
        return "still running at\n" + (dump.read_text(encoding="utf-8") if dump.exists() else "an unknown place")

    def _dump(self, rank: int) -> Path:
        return Path(self.folder.name) / f"stack-{rank}.txt"

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes, self.pipes = [], []


def serve(rank: int, size: int, port: int, file: int, dump: str, key: bytes) -> None:
    """What a rank does: take a function from the connection that the open ``file`` is, run it, send the outcome.

    ``key`` is the test process's: tensors go through files that are handed over to those who know it.
    """
    multiprocessing.current_process().authkey = key
    pipe = connection.Connection(file)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    stack = open(dump, "w", encoding="utf-8")
    faulthandler.register(signal.SIGUSR2, file=stack, all_threads=True)
    local = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": rank,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
    }
    os.environ.update({name: str(value) for name, value in local.items()}, DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    pipe.send(("returned", None))
    while (job := pipe.recv()) is not None:
        try:
            _end_unused_groups()
            place, arguments = job
            pipe.send(("returned", _load(*place)(*arguments)))
        except BaseException:
            # Whatever it is, it belongs to the test, which runs in the other process.
            pipe.send(("failed", traceback.format_exc()))
    dist.destroy_process_group()


def _end_unused_groups() -> None:
    """End the process groups of functions that have returned: each has threads that wake up for ever, and hundreds of
    them keep a core busy. DeepSpeed uses one of its own again."""
    kept = {dist.group.WORLD, getattr(sys.modules.get("deepspeed.utils.groups"), "_WORLD_GROUP", None)}
    for group in set(dist.distributed_c10d._world.pg_map) - kept:
        dist.destroy_process_group(group)
    gc.collect()


def _end_with(parent: int) -> None:
    """End this rank when the test's process is gone, whatever the rank is doing."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _load(file: str, name: str) -> Callable:
    """The function ``name`` of a file; the file runs once per process."""
    module_name = f"ranks_{Path(file).stem}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    return getattr(sys.modules[module_name], name)
