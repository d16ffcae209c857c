"""Pairs of ranks that run ``launch/train.py`` with a fault in one phase, forked from one process that has imported
everything, so that a case takes seconds.

Started with a JSON list of ``Case`` on stdin; gives a JSON list of what became of each on stdout.
"""

import json
import os
import resource
import runpy
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
AT_ONCE = 3
"""Cases: most of a hang is waiting."""


def fail() -> None:
    raise ValueError("the sample's picture\nstands upside down" + 100_000 * ".")


def hang() -> None:
    while True:
        time.sleep(3600)


def leave() -> None:
    sys.exit(3)


def vanish() -> None:
    """What the kernel does to a process when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def hang_up() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


def terminate_and_hang() -> None:
    terminate()
    hang()


def lose_the_console() -> None:
    """What ``| head`` does."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(writer, 2)


def fill_the_console() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def run_out_of_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    open(os.devnull)


def at(owner, name: str, phase: str, after: bool, count: int = 1):
    """Let the fault of this phase strike at the ``count``-th call of a function, before or after its work."""
    work, calls = getattr(owner, name), 0

    def faulty(*arguments, **options):
        nonlocal calls
        calls += 1
        strikes = (
            calls == count and os.environ["FAULT_PHASE"] == phase and os.environ["RANK"] == os.environ["FAULT_RANK"]
        )
        result = work(*arguments, **options) if after or not strikes else None
        if strikes:
            Path(os.environ["FAULT_MARK"]).touch()
            globals()[os.environ["FAULT"]]()
            result = result if after else work(*arguments, **options)
        return result

    setattr(owner, name, faulty)


def prepare() -> None:
    """Import what a rank imports, and put the faults in."""
    import deepspeed  # noqa: F401

    # A process that was started by nohup ignores it.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

    from pdfx.checkpoint.saver import CheckpointSaver
    from pdfx.train import run, trainer
    from pdfx.train.hooks import evaluation
    from pdfx.train.step import Stepper

    at(trainer, "log_environment", "start", False)
    at(run, "build_embedder", "load", True)
    at(Stepper, "embed", "first", True)
    at(Stepper, "embed", "step", True, 2)
    at(evaluation, "embed_inputs", "evaluation", True, 2)
    at(CheckpointSaver, "save", "save", False)
    at(trainer.Trainer, "close", "end", False)


def run_rank(case: dict, rank: int, port: int) -> None:
    """In a forked process."""
    log = os.open(case["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": case["ranks"],
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    faults = {
        "FAULT": case["fault"],
        "FAULT_PHASE": case["phase"],
        "FAULT_RANK": case["rank"],
        "FAULT_MARK": case["log"] + ".mark",
    }
    os.environ.update({name: str(value) for name, value in (variables | faults).items()})
    sys.argv = ["launch/train.py", *case["arguments"]]
    try:
        runpy.run_path(str(ROOT / "launch/train.py"), run_name="__main__")
        sys.stdout.flush()
        os._exit(0)
    finally:
        os._exit(99)


class Running:
    """A case under way."""

    def __init__(self, case: dict):
        from pdfx.distributed.world import free_port

        self.case, self.mark, self.codes, port = case, Path(case["log"] + ".mark"), {}, free_port()
        self.deadline, self.processes = time.time() + 120, []
        for rank in range(case["ranks"]):
            process = os.fork()
            if process == 0:
                run_rank(case, rank, port)
            self.processes.append(process)

    def look(self) -> dict | None:
        """When it is over: codes by rank, negative for signals and None for those that went on, and seconds from the
        fault to the end."""
        for rank, process in enumerate(self.processes):
            if rank not in self.codes and (found := os.waitpid(process, os.WNOHANG))[0]:
                self.codes[rank] = os.waitstatus_to_exitcode(found[1])
        begun = self.mark.stat().st_mtime if self.mark.exists() else None
        rest = set(range(len(self.processes))) - self.codes.keys()
        frozen = self.case["fault"] == "freeze" and rest == {self.case["rank"]}
        if rest and not frozen and time.time() < (self.deadline if begun is None else begun + self.case["bound"]):
            return None
        for rank in rest:
            os.kill(self.processes[rank], signal.SIGKILL)
            os.waitpid(self.processes[rank], 0)
        return {
            "codes": [self.codes.get(rank) for rank in range(len(self.processes))],
            "seconds": time.time() - (begun or 0),
        }


def main() -> None:
    cases = json.load(sys.stdin)
    prepare()
    waiting, running, results = list(enumerate(cases)), {}, {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            number, case = waiting.pop(0)
            running[number] = Running(case)
        for number, case in list(running.items()):
            if result := case.look():
                results[number] = result
                del running[number]
        time.sleep(0.05)
    json.dump([results[number] for number in range(len(cases))], sys.stdout)


if __name__ == "__main__":
    main()
