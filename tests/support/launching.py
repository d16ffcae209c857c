"""Starting training as users do, through each launcher, for tests."""

import os
import subprocess
import sys
from pathlib import Path

from tiny_runs import ROOT

from pdfx.distributed.world import free_port

BIN = Path(sys.executable).parent


def launcher(name: str, ranks: int) -> list[str]:
    """The command up to the script, on CPU cores and a free port."""
    if name == "deepspeed":
        return [str(BIN / "deepspeed"), "--num_accelerators", str(ranks), "--master_port", str(free_port())]
    return [str(BIN / "torchrun"), "--nproc-per-node", str(ranks), "--master-port", str(free_port())]


def environment(**variables: str) -> dict[str, str]:
    """One thread for each rank, and the programs that launchers look for on the PATH."""
    return (
        os.environ
        | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
        | variables
    )


def start(command: list[str], log: Path, **variables: str) -> subprocess.Popen:
    """The command in the project's folder, in a process group of its own, its output at the end of ``log``."""
    with log.open("a") as stream:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(**variables),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
