"""A rank that is killed costs nothing but time: the same command gives the same run, digit for digit."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml
from launching import launcher, start
from tiny_runs import tiny_tree

from pdfx.config import Config, parse_config

STEPS, SAVE_STEPS, KILLED_AT = 12, 3, 5


def begin(folder: Path, run: str) -> subprocess.Popen:
    command = [*launcher("deepspeed", 2), "launch/train.py", str(folder / "recipe.yaml"), f"train.output_dir={folder / run}"]
    return start(command, folder / f"{run}.log")


def last_step(run: Path) -> int:
    try:
        return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    except (FileNotFoundError, IndexError, ValueError):
        return 0


def rank_process(launcher: subprocess.Popen, rank: int) -> psutil.Process:
    return next(child for child in psutil.Process(launcher.pid).children(recursive=True) if child.environ().get("RANK") == str(rank))


def train_whole(config: Config) -> None:
    """In a rank: the run without a launcher and without an interruption."""
    from pdfx.train.cluster import join_world
    from pdfx.train.trainer import StopRequest, Trainer

    trainer = Trainer(config, join_world())
    assert trainer.run(StopRequest())
    trainer.close()
    trainer.engine.destroy()


@pytest.mark.timeout(600)
def test_after_a_kill_the_same_command_continues_to_the_metrics_of_an_uninterrupted_run_digit_for_digit(tmp_path, two_ranks):
    # Dropout, mutual information, chunks, workers and prefetching all have states of their own that must be found again.
    train = {"max_steps": STEPS, "save_steps": SAVE_STEPS, "save_total_limit": 2, "gradient_accumulation_steps": 2, "warmup_steps": 4}
    model = {"lora": {"r": 2, "alpha": 4, "dropout": 0.2, "targets": ["q_proj", "v_proj"]}}
    tree = tiny_tree(tmp_path, "qwen2_vl", "zero3", train=train, model=model, data={"num_workers": 1}, objective={"learn_temperature": True})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))

    two_ranks.run(train_whole, parse_config(tree | {"train": tree["train"] | {"output_dir": str(tmp_path / "whole")}}), timeout=280)
    killed = begin(tmp_path, "killed")
    while last_step(tmp_path / "killed") < KILLED_AT:
        assert killed.poll() is None, (tmp_path / "killed.log").read_text()
        time.sleep(0.005)
    os.kill(rank_process(killed, 1).pid, signal.SIGKILL)
    assert killed.wait(timeout=60) != 0
    assert KILLED_AT <= last_step(tmp_path / "killed") < STEPS

    assert begin(tmp_path, "killed").wait(timeout=280) == 0, (tmp_path / "killed.log").read_text()
    assert "Going on from" in (tmp_path / "killed.log").read_text()
    whole, resumed = ((tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "killed"))
    assert [json.loads(line)["step"] for line in whole.splitlines()] == list(range(1, STEPS + 1))
    assert resumed == whole
