"""What ``deepspeed.sbatch`` runs on each node, started as SLURM starts it: a task whose own process alone is
signalled."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml
from launching import start
from tiny_runs import tiny_tree

from pdfx.distributed.world import free_port
from pdfx.faults.stopping import EXIT_STOPPED


def begin(folder: Path, **variables: str):
    tree = tiny_tree(
        folder, "qwen2_vl", "zero2", train={"max_steps": 500, "output_dir": str(folder / "run"), "peak_tflops": 1.0}
    )
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    (folder / "hostfile").write_text("localhost slots=2\n")
    task = {"SLURM_NODEID": "0", "SLURM_JOB_ID": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    task |= {"HOSTFILE": str(folder / "hostfile"), "PDFX_PYTHON": sys.executable}
    return start(
        ["bash", "launch/slurm/deepspeed_node.sh", str(folder / "recipe.yaml")], folder / "log", **task | variables
    )


@pytest.mark.parametrize(("number", "when"), [(signal.SIGUSR1, "spawned with command"), (signal.SIGTERM, "^step 2/")])
def test_a_signal_to_the_task_reaches_the_ranks_which_save_what_there_is_and_stop(tmp_path, number, when):
    task, log = begin(tmp_path), tmp_path / "log"
    while not re.search(when, log.read_text(), re.MULTILINE):
        assert task.poll() is None, log.read_text()
        time.sleep(0.05)
    os.kill(task.pid, number)
    assert task.wait(timeout=60) == EXIT_STOPPED, log.read_text()
    saved = re.search(r"Stopped by a signal after step (\d+)", log.read_text())
    # What comes before the first step finds nothing to save.
    assert (saved is None) == (number == signal.SIGUSR1), log.read_text()
    assert saved is None or (
        int(saved[1]) < 500 and (tmp_path / f"run/checkpoints/step-{int(saved[1]):08d}/manifest.json").is_file()
    )


def test_gpus_that_the_launcher_would_not_take_are_refused(tmp_path):
    task = begin(tmp_path, CUDA_VISIBLE_DEVICES="4,5")
    assert task.wait(timeout=60) == 2
    assert (
        "Node 0 got the GPUs 4,5, but DeepSpeed's launcher would take the first ones of the node"
        in (tmp_path / "log").read_text()
    )
    assert "launch/slurm/srun.sbatch" in (tmp_path / "log").read_text()
