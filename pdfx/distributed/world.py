"""Joining the process group, whatever started the processes, and small agreements of the ranks."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist

from pdfx.config import ConfigError
from pdfx.errors import UserError

EXIT_USER_ERROR = 2
"""Exit code after a user's mistake, which was reported in a sentence."""

TIMEOUT = timedelta(minutes=30)
"""Longest wait for a rank to start, and in the model's own collectives."""

CONTROL_TIMEOUT = timedelta(days=1)
"""Longest wait in agreements; the run's guards (``guards.pause_seconds``) end it long before."""
PATIENCE = timedelta(days=7)
"""Ranks' shares may take hours, and differ by hours; torchrun itself ends the other ranks when one fails."""


class PeerFailure(SystemExit):
    """This rank ends because another one reports a mistake."""


@dataclass(frozen=True)
class World:
    """The ranks of a run.

    Attributes:
        rank: this process, 0 to size - 1.
        size: W, the number of ranks.
        device: where this rank computes.
        control: a gloo group for host-side agreements, which so never wait for the GPU; None if a rank alone has none.
    """

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None

    def largest(self, values: Sequence[int]) -> list[int]:
        """The element-wise maximum over ranks of a list that is equally long on all."""
        tensor = torch.tensor(list(values), dtype=torch.int64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control)
        return tensor.tolist()

    def total(self, values: Sequence[int]) -> list[int]:
        """The element-wise sum over ranks of a list that is equally long on all."""
        tensor = torch.tensor(list(values), dtype=torch.int64)
        dist.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def any(self, need: bool) -> bool:
        """Whether the answer is yes on some rank."""
        return bool(self.largest([int(need)])[0])

    def from_first(self, value):
        """Rank 0's value on every rank; any picklable object of small size."""
        holder = [value]
        if self.control is not None:
            dist.broadcast_object_list(holder, src=0, group=self.control)
        return holder[0]

    def gather(self, value) -> list:
        """Every rank's value on every rank; any picklable object of small size."""
        values = [value] * self.size
        if self.control is not None:
            dist.all_gather_object(values, value, group=self.control)
        return values

    def barrier(self) -> None:
        """Return when every rank has come here."""
        if self.control is not None:
            dist.barrier(group=self.control)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Every rank runs the block to its end, and all of them stop if it failed on any.

        The lowest rank that has a sentence reports it; the others leave silently with the same exit code, so that
        none is left waiting.
        """
        failure: UserError | ConfigError | None = None
        try:
            yield
        except (UserError, ConfigError) as error:
            failure = error
        teller = self.size - self.largest([self.size - self.rank if failure else 0])[0]
        if failure is not None and teller == self.rank:
            raise failure
        if teller < self.size:
            raise PeerFailure(EXIT_USER_ERROR)


def join_world(environment: MutableMapping[str, str] = os.environ) -> World:
    """Join the process group under ``deepspeed``, ``torchrun`` or ``srun``, or alone if no launcher set anything.

    DeepSpeed reads ``LOCAL_RANK`` as the device's number, so it is set to that.

    Raises:
        UserError: Slurm's variables name no reachable first node, or there are fewer GPUs than local ranks.
    """
    cuda = torch.cuda.is_available()
    environment.update(launch_variables(environment))
    device = torch.device("cpu")
    if cuda:
        number = device_number(int(environment["LOCAL_RANK"]), torch.cuda.device_count())
        environment["LOCAL_RANK"] = str(number)
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # A single rank meets nobody, so it needs no network.
        store, rank, size = (dist.HashStore(), 0, 1) if environment["WORLD_SIZE"] == "1" else (None, -1, -1)
        dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT, store=store, rank=rank, world_size=size)
    join_deepspeed()
    return World(dist.get_rank(), dist.get_world_size(), device, _control_group(CONTROL_TIMEOUT))


def _control_group(timeout: timedelta) -> dist.ProcessGroup:
    # All ranks are members.
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timeout))


def join_deepspeed() -> None:
    """Let DeepSpeed use the process group that exists."""
    import deepspeed

    # DeepSpeed's shared-memory all-reduce serves inference on CPUs only. It would be compiled at the first start, for a
    # minute or more, under a lock that a killed rank leaves behind.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed calls collectives by names that newer releases of torch have changed; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)


def leave_world() -> None:
    """End the process group, if there is one. This process can then join another."""
    if not dist.is_initialized():
        return
    comm = sys.modules.get("deepspeed.comm")
    # DeepSpeed forgets the groups that it made of this one only if it ends the group itself.
    (comm if comm and comm.is_initialized() else dist).destroy_process_group()


def launch_variables(environment: MutableMapping[str, str]) -> dict[str, str]:
    """The variables that torch's ``env://`` rendezvous needs and the launcher did not set."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        wanted = {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
        return {name: value for name, value in wanted.items() if name not in environment}
    if "SLURM_PROCID" in environment:
        return slurm_variables(environment)
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def slurm_variables(environment: MutableMapping[str, str]) -> dict[str, str]:
    """The variables of torch's rendezvous, from those that ``srun`` sets for each task. The port follows from the job's
    and step's numbers, so that jobs on one node do not meet."""
    job, step = int(environment.get("SLURM_JOB_ID", 0)), int(environment.get("SLURM_STEP_ID", 0))
    variables = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1"),
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(10_000 + (job * 7 + step) % 20_000),
    }
    variables["MASTER_ADDR"] = environment.get("MASTER_ADDR") or first_node(environment)
    return variables


def first_node(environment: MutableMapping[str, str]) -> str:
    """The name of the node of rank 0. Raises UserError if Slurm cannot be asked."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    if not nodes:
        return "127.0.0.1"
    if "[" not in nodes:
        return nodes.split(",")[0]
    if shutil.which("scontrol") is None:
        raise UserError(
            f"The node list '{nodes}' needs 'scontrol', which is not on the PATH; set MASTER_ADDR to the first "
            "node's name."
        )
    answer = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
    if answer.returncode != 0 or not answer.stdout.split():
        raise UserError(
            f"'scontrol show hostnames {nodes}' failed: {' '.join(answer.stderr.split())}; set MASTER_ADDR to the "
            "first node's name."
        )
    return answer.stdout.split()[0]


def device_number(local_rank: int, count: int) -> int:
    """Which visible GPU a local rank uses: its own number, or the only one if the launcher shows each rank just one.

    Raises:
        UserError: more ranks than GPUs.
    """
    if count == 1:
        return 0
    if local_rank >= count:
        raise UserError(
            f"This node shows {count} GPUs, but a rank with the local number {local_rank} was started; start at most "
            f"{count} ranks on it."
        )
    return local_rank


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launched_world_size() -> int:
    """W of the launch that this process belongs to, 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def pick_device(index: int = 0) -> torch.device:
    """The GPU of that index, modulo their number, or the CPU if there is none."""
    return torch.device("cuda", index % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def launched_ranks() -> Iterator[World]:
    """This process among the ranks that torchrun started, on CPU and GPU; alone, without a group, if nobody did."""
    size = launched_world_size()
    if size == 1:
        yield World(0, 1, pick_device(), None)
        return
    rank = int(os.environ["RANK"])
    device = pick_device(int(os.environ.get("LOCAL_RANK", rank)))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    # Not in a finally: after a failure, leaving the group in order would wait for ranks that are somewhere else.
    yield World(rank, size, device, _control_group(PATIENCE))
    leave_world()
