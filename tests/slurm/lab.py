"""The two-node SLURM of ``lab.sh`` for tests: jobs, their states and logs."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from launching import environment
from tiny_runs import ROOT

SCRIPT = Path(__file__).with_name("lab.sh")

SETTLING = 5.0
"""Seconds for an answer of a node to arrive."""

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "runuser")


def why_not() -> str | None:
    """Why there can be no lab here."""
    if os.geteuid() != 0:
        return "a SLURM lab needs root"
    missing = [
        program for program in PROGRAMS if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None
    ]
    return f"{', '.join(missing)} not installed (apt-get install slurm-wlm munge)" if missing else None


class Lab:
    """A context with a running SLURM."""

    def __enter__(self) -> "Lab":
        # Not one of pytest's folders: munge's own user must get at it.
        self.folder = Path(tempfile.mkdtemp(prefix="pdfx-slurm-"))
        self.folder.chmod(0o755)
        self.jobs: list[str] = []
        # Node names do not resolve on one machine, and all nodes are it.
        self.variables = {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "GLOO_SOCKET_IFNAME": "lo",
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        self.variables["PDFX_PYTHON"] = sys.executable
        self.script("start")
        return self

    def __exit__(self, *_) -> None:
        for job in self.jobs:
            self.ask("scancel", job)
        self.wait_until(lambda: not self.ask("squeue", "-h"), 30)
        self.script("stop")
        shutil.rmtree(self.folder, ignore_errors=True)

    def script(self, action: str, *arguments: str) -> None:
        subprocess.run(
            ["bash", SCRIPT, action, self.folder, *arguments], check=True, env=environment(**self.variables), timeout=60
        )

    def ask(self, *command: str) -> str:
        """What a command of SLURM prints."""
        return subprocess.run(
            command, capture_output=True, text=True, env=environment(**self.variables), timeout=60, check=False
        ).stdout.strip()

    def submit(
        self,
        script: str,
        log: Path,
        *arguments: str,
        options: tuple[str, ...] = ("--nodes", "2", "--ntasks-per-node", "1"),
    ) -> str:
        """The number of a job of the project's script."""
        command = ["sbatch", "--parsable", "--output", str(log), *options, f"launch/slurm/{script}", *arguments]
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=environment(**self.variables),
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        self.jobs.append(done.stdout.strip())
        return self.jobs[-1]

    def field(self, job: str, name: str) -> str:
        """A field of ``scontrol show job``."""
        words = self.ask("scontrol", "--oneliner", "show", "job", job).split()
        return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), "")

    def state(self, job: str) -> str:
        return self.field(job, "JobState")

    def signal_script(self, job: str, number: signal.Signals) -> None:
        """What SLURM does before the time is up."""
        self.ask("scancel", f"--signal={number.name[3:]}", "--batch", job)

    def start_again(self, job: str, seconds: float = 90) -> None:
        """Wait until the job is back in the queue, and let it start soon instead of after SLURM's two minutes.

        Those are there so that what the controller still has to tell the nodes about the job's last start, and they it,
        does not meet the next one.
        """
        self.wait_until(lambda: self.state(job) == "PENDING", seconds)
        self.wait_until(self.is_quiet, seconds)
        time.sleep(SETTLING)
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    def is_quiet(self) -> bool:
        """Both nodes wait for jobs, and the controller has nothing more to tell them."""
        states = set(self.ask("sinfo", "--noheader", "--Node", "--format", "%T").split())
        return states == {"idle"} and re.search(r"Agent queue size:\s+0\b", self.ask("sdiag")) is not None

    def report(self) -> str:
        """What there is to know when something takes too long: the nodes, the jobs, and the ends of all logs."""
        parts = [
            self.ask("sinfo", "--Node", "--long"),
            *(self.ask("scontrol", "show", "job", job) for job in self.jobs[-1:]),
        ]
        logs = [*self.folder.glob("*.log"), *map(Path, {self.field(job, "StdOut") for job in self.jobs[-1:]})]
        parts += [f"{log}:\n{log.read_text(errors='replace')[-6000:]}" for log in logs if log.is_file()]
        return "\n\n".join(parts)

    def preempt(self) -> None:
        """Let a job of the other partition, which goes first, take both nodes from whatever runs there."""
        self.jobs.append(
            self.ask(
                "sbatch",
                "--parsable",
                "--partition",
                "urgent",
                "--nodes",
                "2",
                "--exclusive",
                "--output",
                "/dev/null",
                "--wrap",
                "true",
            )
        )

    def lose_node(self, node: str) -> None:
        """All processes of a node go at once, as if its power did: its daemon, the steps' daemons, and the tasks with
        all that they started."""
        lost = set()
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURMD_NODENAME") == node:
                    lost |= {
                        process,
                        *(parent for parent in process.parents() if parent.name().startswith("slurmstepd")),
                    }
                elif process.name() == "slurmd" and [node, str(self.folder / "slurm.conf")] == process.cmdline()[2::2]:
                    lost.add(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        for process in lost:
            process.kill()

    def wait_until(self, condition, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"it took longer than {seconds} s\n{self.report()}"
            time.sleep(0.1)
