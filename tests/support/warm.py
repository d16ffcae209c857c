"""Python processes that start warm: forked by a server that has imported torch, transformers and deepspeed once.

``run`` and ``Popen`` take what those of ``subprocess`` take. The process is a child of the caller, with a process
number, an exit status, streams, signals, a folder and an environment of its own, and runs its script as ``__main__``.
It differs from a fresh interpreter in what is decided at start-up: its modules are imported already, it holds their
memory, and all such processes share one seed for hashes. So tests of launchers, of start-up and of memory use
``subprocess``.
"""

import ctypes
import fcntl
import gc
import importlib
import multiprocessing.process
import os
import pickle
import runpy
import socket
import struct
import subprocess
import sys
import time
import types
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "deepspeed",
    "peft",
    "pytest",
    "transformers.models.llava_next.modeling_llava_next",
    "transformers.models.llava_next.processing_llava_next",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "transformers.models.qwen2_vl.processing_qwen2_vl",
    "pdfx.cli.app",
    "pdfx.convert",
    "pdfx.evaluate.embed",
    "pdfx.train.trainer",
)
SERVER_ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    # A thread in the server would be missing in its forks.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
READ_AT_IMPORT = ("CUDA_", "HF_", "LANG", "LC_", "MALLOC", "PYTHON", "PYTORCH_", "TORCH_", "TRANSFORMERS_")
"""Beginnings of names of variables that the interpreter, or an import, reads once."""
SET_SUBREAPER = 36
"""Of prctl(2): whoever loses the parent becomes a child of this process."""


class Popen(subprocess.Popen):
    """A process of ``[sys.executable, SCRIPT | -m MODULE | -c CODE, ...]``."""

    # fmt: off
    def _execute_child(
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite,
        restore_signals, gid, gids, uid, umask, start_new_session, *_,
    ):  # fmt: on
        words = [os.fspath(word) for word in args]
        environment = dict(os.environ if env is None else env)
        assert words[0] == sys.executable, "only Python starts warm"
        late = [name for name in _changed(environment) if name.startswith(READ_AT_IMPORT)]
        assert not late, f"{', '.join(late)}: read before a process that starts warm gets its environment"
        streams = [number if number != -1 else own for own, number in enumerate((p2cread, c2pwrite, errwrite))]
        request = (words[1:], os.fspath(cwd or os.getcwd()), environment, start_new_session, pass_fds)
        self.pid = _server().start(request, (*streams, *pass_fds))
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def _changed(environment: dict[str, str]) -> set[str]:
    """Names of variables that have another value than in the server, and are not set there for all."""
    names = (environment.keys() | os.environ.keys()) - SERVER_ENVIRONMENT.keys()
    return {name for name in names if environment.get(name) != os.environ.get(name)}


def run(command, *, input=None, capture_output=False, timeout=None, check=False, **options):
    """As ``subprocess.run``."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options["stdout"] = options["stderr"] = subprocess.PIPE
    with Popen(command, **options) as process:
        try:
            output, errors = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


class _Server:
    def __init__(self):
        self.channel, there = socket.socketpair()
        environment = os.environ | SERVER_ENVIRONMENT
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(there.fileno())], cwd=ROOT, env=environment, pass_fds=[there.fileno()]
        )
        there.close()
        self.control = ctypes.CDLL(None, use_errno=True).prctl

    def start(self, request: tuple, files: tuple[int, ...]) -> int:
        """The number of a new child of this process."""
        data = pickle.dumps(request)
        self.control(SET_SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(self.channel, [struct.pack("q", len(data))], files)
            self.channel.sendall(data)
            return struct.unpack("q", _receive(self.channel, 8))[0]
        finally:
            self.control(SET_SUBREAPER, 0, 0, 0, 0)


@cache
def _server() -> _Server:
    return _Server()


def _receive(channel: socket.socket, size: int) -> bytes:
    data = channel.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise EOFError("the other side of the channel is gone")
    return data


def _serve(channel: socket.socket) -> list[str]:
    """Fork a process for each request; returns in the new process alone, with the words of its command line."""
    while True:
        header, files, *_ = socket.recv_fds(channel, 8, 16)
        if not header:
            os._exit(0)
        request = pickle.loads(_receive(channel, struct.unpack("q", header)[0]))
        reader, writer = os.pipe()
        parent = os.fork()
        if parent == 0:
            parent = os.getpid()
            child = os.fork()
            if child == 0:
                while os.getppid() == parent:
                    time.sleep(0.001)
                for number in (reader, writer, channel.detach()):
                    os.close(number)
                return _become(files, *request)
            os.write(writer, struct.pack("q", child))
            os._exit(0)
        os.waitpid(parent, 0)
        channel.sendall(os.read(reader, 8))
        for number in (reader, writer, *files):
            os.close(number)


def _become(files, words, folder, environment, new_session, passed) -> list[str]:
    """Take over what the caller gave this process."""
    if new_session:
        os.setsid()
    # First out of the way of the numbers that others are to have.
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 1000) for number in files]
    for number in files:
        os.close(number)
    for number, wanted in zip(moved, (0, 1, 2, *passed), strict=True):
        os.dup2(number, wanted)
        os.close(number)
    os.chdir(folder)
    multiprocessing.process.ORIGINAL_DIR = folder
    os.environ.clear()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    return words


def _run_as_main(words: list[str]) -> None:
    """What the interpreter does with its command line."""
    first, *rest = words
    if first == "-c":
        code, *rest = rest
        sys.argv, sys.path[0] = ["-c", *rest], ""
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), main.__dict__)
    elif first == "-m":
        module, *rest = rest
        sys.argv, sys.path[0] = ["-m", *rest], os.getcwd()
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads run before a fork"
    _run_as_main(_serve(socket.socket(fileno=int(sys.argv[1]))))
