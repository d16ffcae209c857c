"""``launch/train.py`` as users start it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import warm
import yaml
from tiny_runs import ROOT, tiny_tree

from pdfx.distributed.world import free_port
from pdfx.train.trainer import EXIT_STOPPED

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_tree(folder, train={"max_steps": 100_000})))
    return path


def launch(*arguments: str, **variables: str) -> warm.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return warm.Popen(
        [sys.executable, "launch/train.py", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train.learning_rat=1"], "unknown key 'train.learning_rat'; did you mean 'train.learning_rate'?"),
        (["model.paths=0"], "'model.paths' is 0"),
        (["train.eval_steps=2"], "data.evaluation names no shards"),
        (["data.train=nowhere"], "nowhere"),
        (["model.lora.targets=[nothing]"], "model.lora.targets names 'nothing'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(recipe, arguments, sentence):
    process = launch(recipe, *arguments)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 2
    assert sentence in errors.splitlines()[-1]
    assert "Traceback" not in errors


def test_a_dry_run_prints_settings_parameters_and_steps_and_writes_nothing(recipe, tmp_path):
    process = launch(
        recipe, "--dry-run", "--profile", "train.max_steps=12", f"train.output_dir={tmp_path / 'run'}", "--local_rank=0"
    )
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "max_steps: 12" in output and "profile_steps: 3" in output
    for part in ("language model", "vision tower", "prefixes", "adapters"):
        assert part in output
    assert "12 steps of 2 pairs" in output
    assert not (tmp_path / "run").exists()


def test_tasks_of_srun_train_together_and_on_sigusr1_to_one_both_save_and_exit_with_the_code_for_stopped(recipe):
    job = {"SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_JOB_ID": "1", "MASTER_PORT": str(free_port())}
    tasks = [launch(recipe, SLURM_PROCID=str(task), SLURM_LOCALID=str(task), **job) for task in range(2)]
    try:
        while (
            not (recipe.parent / "run/metrics.jsonl").exists() or not (recipe.parent / "run/metrics.jsonl").read_text()
        ):
            if any(task.poll() is not None for task in tasks):
                for task in tasks:
                    task.kill()
                pytest.fail(
                    "A task ended before the first step: "
                    f"{[(task.args, task.communicate(), task.returncode) for task in tasks]}"
                )
            time.sleep(0.05)
        tasks[1].send_signal(signal.SIGUSR1)
        outputs = [task.communicate(timeout=60) for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    assert [task.returncode for task in tasks] == [EXIT_STOPPED, EXIT_STOPPED], outputs
    assert "the same command resumes from there" in outputs[0][0]
    assert len(list((recipe.parent / "run/checkpoints").glob("step-*/manifest.json"))) == 1
