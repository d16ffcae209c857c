"""Every phase of a run x every way to fail: all ranks end, within the time that docs/cluster.md promises, and the log's
last entry says what happened.

A few of the cases by default, to keep the test short; all of them with ``PDFX_FAULTS=all``. Limits are the shipped
ones, except those that a hang waits for.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import yaml
from launching import environment
from tiny_runs import ROOT, tiny_tree

BEYOND = 20
"""Seconds that the end of a job may take beyond the limit that was reached."""

PHASES = {
    "start": "step 0(, where)? it had to start",
    "load": "step 0(, where)? it had to start",
    "first": "step 1(, where)? it had to embed a chunk",
    "step": "step 2(, where)? it had to embed a chunk",
    "evaluation": "step 2(, where)? it had to embed a batch of the evaluation",
    "save": "step 2(, where)? it had to save a checkpoint",
    "end": "step 3(, where)? it had to end the run",
}
LIMITS = {
    "first": "guards.first_seconds",
    "step": "guards.stall_seconds",
    "evaluation": "guards.stall_seconds",
    "end": "guards.stall_seconds",
}
QUIET = {"lose_the_console", "fill_the_console"}
STOPS = {"terminate", "hang_up"}


@dataclass(frozen=True)
class Case:
    phase: str
    fault: str
    rank: int = 1
    ranks: int = 2

    def __str__(self) -> str:
        return f"{self.fault} in {self.phase}, rank {self.rank} of {self.ranks}"

    @property
    def hang_seconds(self) -> int:
        """What the case's limit is set to, so that the test does not wait for the shipped one; loading may take a while
        on a busy machine."""
        return 8 if self.phase in LIMITS else 60

    def settings(self) -> list[str]:
        # What is new may never take less long than the same later.
        names = {
            LIMITS.get(self.phase, "guards.pause_seconds"),
            *(["guards.stall_seconds"] if self.phase == "first" else []),
        }
        return [f"{name}={self.hang_seconds}" for name in names] if self.fault == "hang" else []

    def bound(self) -> float:
        waits = {"hang": self.hang_seconds, "terminate_and_hang": 20, "vanish": 20, "crash": 20, "freeze": 20}
        return waits.get(self.fault, 0) + BEYOND + (100 if self.fault in QUIET | STOPS else 0)

    def expected(self) -> tuple[int, str]:
        """Exit code of each rank that lives, and the last entry."""
        name = rf"Rank {self.rank} \(host .*, process \d+\)" if self.ranks > 1 else "The run"
        place = PHASES[self.phase]
        finished = (
            self.fault in QUIET
            or (self.fault in STOPS and self.phase in ("save", "end"))
            or (self.fault, self.phase) == ("vanish", "end")
        )
        # What is asked in the second step, after the last look, is done in the third, which is the last.
        if finished or self.fault in STOPS:
            words = "Finished after step 3" if finished else "Stopped by a signal (before the first|after) step"
            return (0 if finished else 75), words
        return {
            "fail": (1, rf"{name} failed in {place}: ValueError: the sample's picture stands upside down\.+$"),
            "leave": (1, rf"{name} failed in {place}: something there ended the process with exit code 3\.$"),
            "run_out_of_files": (
                2,
                rf"{name} failed in {place}: /dev/null: Too many open files; raise the limit of open files",
            ),
            "hang": (
                76,
                rf"{name if self.ranks > 1 else 'Rank 0'} (holds the others up|hangs): in {place}; it is at "
                rf".*fault_matrix.py, line \d+, in hang",
            ),
            "terminate_and_hang": (
                76,
                rf"{name} holds the others up: in {place}; it is at .*fault_matrix.py, line \d+, in hang",
            ),
            "vanish": (76, rf"{name} gave no more sign of life, so the job ends: the process is gone without a word"),
            "crash": (76, rf"{name} gave no more sign of life, so the job ends: the process is gone without a word"),
            "freeze": (
                76,
                rf"{name} gave no more sign of life, so the job ends: the process is still there, but it does not run",
            ),
        }[self.fault]


SHORT = [
    Case("load", "terminate"),
    Case("first", "hang"),
    Case("step", "vanish", 0),
    Case("step", "hang_up"),
    Case("step", "lose_the_console", 0),
    Case("step", "leave", 0, 1),
    Case("evaluation", "hang"),
    Case("evaluation", "run_out_of_files"),
    Case("save", "leave"),
    Case("end", "fail"),
]
FAULTS = ("fail", "hang", "leave", "vanish", "terminate")
ALL = [
    *(Case(phase, fault) for phase in PHASES for fault in FAULTS),
    *(Case(phase, fault, 0, ranks) for phase in PHASES for fault in sorted(QUIET) for ranks in (1, 2)),
    *(Case("step", fault, 0, 1) for fault in ("fail", "leave", "hang", "terminate")),
    *(Case("step", fault) for fault in ("freeze", "crash")),
    *(Case(phase, "terminate_and_hang") for phase in ("first", "step")),
]
CASES = SHORT + [case for case in ALL if case not in SHORT] if os.environ.get("PDFX_FAULTS") == "all" else SHORT


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[Case, dict]:
    """What became of each case: codes, seconds, run and log."""
    folder = tmp_path_factory.mktemp("faults")
    train = {"max_steps": 3, "save_steps": 2, "eval_steps": 2, "save_in_background": False, "peak_tflops": 1.0}
    tree = tiny_tree(folder, "qwen2_vl", "zero3", train=train, evaluate={"batch_size": 2})
    tree["data"]["evaluation"] = tree["data"]["train"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    runs = {case: folder / str(number) for number, case in enumerate(CASES)}
    jobs = [
        asdict(case)
        | {
            "bound": case.bound(),
            "log": f"{run}.log",
            "arguments": [str(folder / "recipe.yaml"), f"train.output_dir={run}", *case.settings()],
        }
        for case, run in runs.items()
    ]
    command = [sys.executable, "tests/distributed/fault_matrix.py"]
    done = subprocess.run(
        command, input=json.dumps(jobs), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    return {
        case: outcome | {"run": run, "log": Path(f"{run}.log").read_text()}
        for (case, run), outcome in zip(runs.items(), outcomes, strict=True)
    }


@pytest.mark.timeout(600 if CASES == SHORT else 3600)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_ranks_end_in_time_with_the_code_and_the_words_for_what_happened(results, case):
    result, (code, words) = results[case], case.expected()
    dead = {"vanish": -9, "crash": -11, "freeze": None}
    for rank, ended in enumerate(result["codes"]):
        # At the end the others have finished already.
        allowed = (
            [dead[case.fault]]
            if case.fault in dead and rank == case.rank
            else [code, 0]
            if case.phase == "end" and rank != case.rank
            else [code]
        )
        assert ended in allowed, result["log"]
    assert result["seconds"] < case.bound()
    lines = result["log"].splitlines()
    if case.fault not in QUIET:
        assert re.match(words, lines[-1]), result["log"]
    if case.fault == "hang":
        limit = LIMITS.get(case.phase, "guards.pause_seconds")
        assert re.search(
            rf"^No progress for \d+ s \({limit}\); the stack of each rank is in ", result["log"], re.MULTILINE
        ), result["log"]
    if case.fault == "fill_the_console":
        assert any(line.startswith("<stdout> can no longer be written to (No space left on device)") for line in lines)
    if code == 0:
        steps = [
            record["step"]
            for record in map(json.loads, (result["run"] / "metrics.jsonl").read_text().splitlines())
            if "loss" in record
        ]
        assert steps == [1, 2, 3]
        assert (result["run"] / "checkpoints/step-00000003/manifest.json").exists()
