"""The project's job scripts in a real two-node SLURM: they train as one node does, stop and go on when told, and never
hang where a node is lost."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from launching import environment
from slurm.lab import Lab, why_not
from tiny_runs import ROOT, tiny_tree

from pdfx.config import Config, parse_config

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
    pytest.mark.timeout(600),
]

STEPS = 60


@pytest.fixture(scope="module")
def lab():
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> dict:
    train = {"max_steps": STEPS, "save_steps": 5, "warmup_steps": 4, "peak_tflops": 1.0}
    return tiny_tree(tmp_path_factory.mktemp("slurm"), "qwen2_vl", "zero3", train=train, guards={"stall_seconds": 5})


@pytest.fixture(scope="module")
def recipe(tree) -> Path:
    path = Path(tree["train"]["output_dir"]).parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def train_on_one_node(config: Config) -> None:
    """In a rank: the whole run without SLURM."""
    from pdfx.distributed.world import join_world
    from pdfx.train.trainer import StopRequest, Trainer

    trainer = Trainer(config, join_world())
    assert trainer.run(StopRequest())
    trainer.close()
    trainer.engine.destroy()


@pytest.fixture(scope="module")
def expected(tree, two_ranks) -> str:
    """The metrics of the same two ranks on one node."""
    run = Path(tree["train"]["output_dir"]).parent / "one-node"
    two_ranks.run(
        train_on_one_node, parse_config(tree | {"train": tree["train"] | {"output_dir": str(run)}}), timeout=200
    )
    return (run / "metrics.jsonl").read_text()


def last_step(run: Path) -> int:
    try:
        return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    except (FileNotFoundError, IndexError, ValueError):
        return 0


def wait_for_step(lab: Lab, job: str, run: Path, step: int, log: Path) -> None:
    def reached() -> bool:
        assert lab.state(job) in ("RUNNING", "PENDING", "COMPLETING"), log.read_text()
        return last_step(run) >= step

    lab.wait_until(reached, 150)


def finish(lab: Lab, job: str, log: Path) -> None:
    lab.wait_until(lambda: lab.state(job) not in ("RUNNING", "PENDING", "COMPLETING", "CONFIGURING"), 200)
    assert lab.state(job) == "COMPLETED", log.read_text()


def test_a_job_on_two_nodes_saves_on_sigusr1_goes_on_when_it_is_requeued_and_so_it_does_when_a_node_is_lost(
    lab, recipe, expected, tmp_path
):
    run, log = tmp_path / "run", tmp_path / "log"
    job = lab.submit("srun.sbatch", log, str(recipe), f"train.output_dir={run}")
    stopped = stop_by_sigusr1(lab, job, run, log)
    lab.start_again(job)
    wait_for_step(lab, job, run, stopped + 6, log)
    lab.lose_node("n2")
    lost = time.monotonic()
    lab.wait_until(lambda: lab.state(job) == "PENDING", 90)
    assert time.monotonic() - lost < 90
    lab.script("node", "n2")
    lab.start_again(job)
    finish(lab, job, log)
    assert f"SLURM job {job} on n[1-2], requeued 2 times before." in log.read_text()
    # The same two ranks with the same arithmetic: nothing may differ, so the tolerance is 0.
    assert (run / "metrics.jsonl").read_text() == expected


def test_a_job_under_deepspeeds_launcher_does_so_too_and_where_its_nodes_are_given_to_another_job(
    lab, recipe, expected, tmp_path
):
    run, log = tmp_path / "run", tmp_path / "log"
    job = lab.submit("deepspeed.sbatch", log, str(recipe), f"train.output_dir={run}")
    stopped = stop_by_sigusr1(lab, job, run, log)
    lab.start_again(job)
    wait_for_step(lab, job, run, stopped + 2, log)
    lab.preempt()
    lab.start_again(job)
    finish(lab, job, log)
    text = log.read_text()
    assert len(re.findall("Stopped by a signal after step", text)) == len(re.findall("Putting job", text)) == 2
    assert len(re.findall("Asked to stop by SIGUSR1", text)) == 1
    assert (run / "metrics.jsonl").read_text() == expected


def stop_by_sigusr1(lab: Lab, job: str, run: Path, log: Path) -> int:
    """Signal the job's script as SLURM does before the time is up, and wait until the job is in the queue again; the
    step that was saved."""
    wait_for_step(lab, job, run, 2, log)
    lab.signal_script(job, signal.SIGUSR1)
    lab.wait_until(lambda: lab.state(job) == "PENDING", 90)
    text = log.read_text()
    stopped = int(re.search(r"Stopped by a signal after step (\d+)", text)[1])
    assert 2 <= stopped < STEPS
    assert f"step-{stopped:08d}; training waited" in text
    assert "ranks on 1 machines" in text
    return stopped


def test_a_rank_that_hangs_on_another_node_ends_the_step_and_is_named_at_the_bottom_of_the_log(lab, recipe, tmp_path):
    variables = {"FAULT": "hang", "FAULT_RANK": "1", "FAULT_STEP": "3", "MASTER_ADDR": "127.0.0.1"}
    command = [
        "srun",
        "--nodes",
        "2",
        "--ntasks-per-node",
        "1",
        environment()["PATH"].partition(":")[0] + "/python",
        "-u",
        "tests/distributed/faulty_train.py",
    ]
    command += [str(recipe), f"train.output_dir={tmp_path / 'run'}"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(**lab.variables, **variables),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode != 0
    bottom = [line for line in done.stderr.splitlines() if not line.startswith(("srun:", "slurmstepd"))][-1]
    assert re.match(
        r"Rank 1 \(.*\) holds the others up: in step 3 it had to embed a chunk; it is at .*, in hang", bottom
    ), done.stderr


def test_each_task_of_a_sweep_takes_its_own_line_and_directory_and_a_line_that_is_not_there_is_told(
    lab, recipe, tmp_path, monkeypatch
):
    sweep = tmp_path / "study.txt"
    sweep.write_text("# The first line counts as none.\nmodel.paths=2\n\nmodel.paths=3 objective.diversity=none\n")
    options = ("--nodes", "1", "--ntasks-per-node", "1", "--array", "0-2")
    # A container's command would stand in the wrapper's place.
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\necho "$SLURM_ARRAY_TASK_ID" >> {tmp_path}/wrapped\nexec "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setitem(lab.variables, "PDFX_WRAPPER", str(wrapper))
    job = lab.submit("sweep.sbatch", Path(f"{tmp_path}/%a.log"), str(recipe), str(sweep), "--dry-run", options=options)
    lab.wait_until(lambda: not lab.ask("squeue", "-h", "-j", job), 150)
    first, second, third = ((tmp_path / f"{task}.log").read_text() for task in range(3))
    assert "paths: 2" in first and "output_dir: runs/study/0" in first
    assert "paths: 3" in second and "diversity: none" in second and "output_dir: runs/study/1" in second
    assert "has no line 2; give --array a range that it has, 0 to 1." in third
    assert sorted((tmp_path / "wrapped").read_text().split()) == ["0", "1"]
