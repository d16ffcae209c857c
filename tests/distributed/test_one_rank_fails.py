"""One rank raises, hangs, vanishes or runs out of memory: the whole job ends, not as if all were well, and its log ends
with that rank's error.

Real processes under real launchers. What the launchers themselves write afterwards is not looked at.
"""

import re
import time
from pathlib import Path

import pytest
import yaml
from launching import launcher, start
from tiny_runs import tiny_tree

from pdfx.faults.stacks import stack_path

BOUND = 60
"""Seconds that a job may take to end, from the fault on."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    # The stall would be noticed after 40 s by default; everything else is as it is shipped.
    tree = tiny_tree(
        folder, "qwen2_vl", "zero3", train={"max_steps": 100_000, "save_steps": 2}, guards={"stall_seconds": 5}
    )
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return folder / "recipe.yaml"


def run_with_fault(recipe: Path, launched_by: str, fault: str) -> tuple[int, float, str]:
    """Exit code, seconds from the fault to the end, and the log up to what the launcher adds."""
    run = recipe.parent / f"{launched_by}-{fault}"
    log = run.with_suffix(".log")
    command = [*launcher(launched_by, 2), "tests/distributed/faulty_train.py", str(recipe), f"train.output_dir={run}"]
    process = start(command, log, FAULT=fault, FAULT_RANK="1", FAULT_STEP="3")
    try:
        code = process.wait(timeout=200)
    finally:
        process.kill()
    # The last record is that of the step before the fault.
    recorded = (run / "metrics.jsonl").stat().st_mtime
    return code, time.time() - recorded, log.read_text()


def last_entry(log: str, launched_by: str) -> str:
    """The last line that is not the launcher's own; torchrun ends with a summary that holds the failed rank's error as
    its last line but one."""
    if launched_by == "torchrun":
        return log.rstrip().splitlines()[-2].strip()
    return [line for line in log.splitlines() if line.strip() and "launch.py" not in line][-1]


@pytest.mark.parametrize(
    ("launched_by", "fault", "sentence"),
    [
        (
            "torchrun",
            "fail",
            r"Rank 1 \(host .*, process \d+\) failed in step 3, where it had to embed a chunk: ValueError: .*picture "
            r"stands upside down",
        ),
        (
            "torchrun",
            "run_out_of_memory",
            r"Rank 1 \(.*\) ran out of memory in step 3, where it had to embed a chunk; lower train.chunk_tokens",
        ),
        (
            "deepspeed",
            "vanish",
            r"Rank 1 \(.*\) gave no more sign of life, so the job ends: the process is gone .* most often because "
            r".*memory ran out",
        ),
        (
            "deepspeed",
            "hang",
            r"Rank 1 \(.*\) holds the others up: in step 3 it had to embed a chunk; it is at .*faulty_train.py, line "
            r"\d+, in hang",
        ),
    ],
)
def test_the_job_ends_in_time_with_an_error_code_and_the_failed_ranks_error_at_the_bottom_of_the_log(
    recipe, launched_by, fault, sentence
):
    code, seconds, log = run_with_fault(recipe, launched_by, fault)
    assert code != 0
    assert seconds < BOUND
    assert re.match(sentence, last_entry(log, launched_by)), log
    if fault == "hang":
        stacks = [stack_path(recipe.parent / f"{launched_by}-{fault}", rank).read_text() for rank in (0, 1)]
        assert "in hang" in stacks[1].splitlines()[0] and "in hang" not in stacks[0]
