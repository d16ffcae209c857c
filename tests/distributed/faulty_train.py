"""``launch/train.py`` with a fault in one rank: FAULT names it, FAULT_RANK and FAULT_STEP say where. Tests start it as
users start the real one."""

import os
import resource
import runpy
import signal
import time
from pathlib import Path

import torch

from pdfx.train.step import Stepper


def fail() -> None:
    raise ValueError("the sample's picture stands upside down")


def hang() -> None:
    while True:
        time.sleep(3600)


def hold_the_interpreter() -> None:
    """Hang in C code that lets no other thread of Python run."""
    import ctypes

    ctypes.PyDLL(None).sleep(3600)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def vanish() -> None:
    """What the kernel does to a process when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def run_out_of_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, resource.RLIM_INFINITY))
    torch.ones(2**28).sum()


FAULTS = {fault.__name__: fault for fault in (fail, hang, hold_the_interpreter, stop, vanish, run_out_of_memory)}

embed = Stepper.embed


def embed_with_a_fault(stepper: Stepper, part, step: int, with_graph: bool):
    output = embed(stepper, part, step, with_graph)
    if (str(stepper.world.rank), str(step)) == (os.environ["FAULT_RANK"], os.environ["FAULT_STEP"]):
        FAULTS[os.environ["FAULT"]]()
    return output


if __name__ == "__main__":
    Stepper.embed = embed_with_a_fault
    runpy.run_path(str(Path(__file__).parents[2] / "launch/train.py"), run_name="__main__")
