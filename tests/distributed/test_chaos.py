"""One run, killed again and again with kill -9: at random moments, random ranks, saves in flight included. It ends as
if nothing had happened.

``PDFX_CHAOS_KILLS`` says how often (few by default, to keep the test short), ``PDFX_CHAOS_LAUNCHER`` how it is started:
``deepspeed`` or ``torchrun``. What was hit is printed: ``pytest -s``.
"""

import json
import os
import random
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml
from launching import launcher, start
from tiny_runs import tiny_tree

from pdfx.config import Config, parse_config

KILLS = int(os.environ.get("PDFX_CHAOS_KILLS", "3"))
LAUNCHER = os.environ.get("PDFX_CHAOS_LAUNCHER", "deepspeed")
STEPS = 3 * KILLS + 6
SEED = 20

CHANCES = {"start": 0.2, "steps": 0.4, "save": 0.4}
"""What a kill aims at; where it strikes, the clock decides."""


def train_undisturbed(config: Config) -> None:
    """In a rank: the run without a launcher and without an interruption."""
    from pdfx.distributed.world import join_world
    from pdfx.train.trainer import StopRequest, Trainer

    trainer = Trainer(config, join_world())
    assert trainer.run(StopRequest())
    trainer.close()
    trainer.engine.destroy()


class Killer:
    """Starts the run again and again and kills one of its ranks each time."""

    def __init__(self, recipe: Path, run: Path):
        self.recipe, self.run, self.random, self.struck = recipe, run, random.Random(SEED), Counter()
        self.log = run.with_suffix(".log")

    def begin(self):
        return start(
            [*launcher(LAUNCHER, 2), "launch/train.py", str(self.recipe), f"train.output_dir={self.run}"], self.log
        )

    def kill_once(self) -> None:
        """Start, wait for a random moment, kill, and wait for the job's end."""
        process, before = self.begin(), self.last_step()
        number = self.random.randrange(2)
        rank = self.find_rank(process, number)
        aim = self.random.choices(list(CHANCES), CHANCES.values())[0]
        moment = self.random.random()
        if aim == "start":
            time.sleep(10 * moment)
        else:
            wanted = before + 1 + self.random.randrange(3)
            self.wait(process, lambda: self.last_step() >= wanted)
            if aim == "save":
                self.wait(process, self.is_saving, 0.002)
            time.sleep(moment * (0.03 if aim == "save" else 0.3))
        where = "saving" if self.is_saving() else "starting" if self.last_step() == before else "stepping"
        rank.kill()
        self.struck[f"rank {number} {where}"] += 1
        assert process.wait(timeout=90) != 0, self.log.read_text()

    def find_rank(self, process, rank: int) -> psutil.Process:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            for child in psutil.Process(process.pid).children(recursive=True):
                try:
                    if child.environ().get("RANK") == str(rank) and "launch/train.py" in child.cmdline():
                        return child
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def wait(self, process, condition, interval: float = 0.02) -> None:
        while not condition():
            assert process.poll() is None, self.log.read_text()
            time.sleep(interval)

    def is_saving(self) -> bool:
        return any((self.run / "checkpoints").glob("*.partial"))

    def last_step(self) -> int:
        """Of the last whole record."""
        try:
            return json.loads((self.run / "metrics.jsonl").read_text().rpartition("\n")[0].splitlines()[-1])["step"]
        except (FileNotFoundError, IndexError, ValueError):
            return 0


def content(run: Path) -> dict[str, bytes]:
    """Every file of the last checkpoint that does not name its run."""
    checkpoint = run / f"checkpoints/step-{STEPS:08d}"
    files = {str(path.relative_to(checkpoint)): path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name not in ("config.yaml", "manifest.json")}


@pytest.mark.timeout(240 + 90 * KILLS)
def test_a_run_that_is_killed_again_and_again_ends_with_the_weights_and_metrics_of_an_undisturbed_one_bit_for_bit(
    tmp_path, two_ranks
):
    # Dropout, mutual information, chunks, workers and prefetching all have states of their own that must be found
    # again.
    train = {
        "max_steps": STEPS,
        "save_steps": 2,
        "save_total_limit": 3,
        "warmup_steps": 4,
        "peak_tflops": 1.0,
        "gradient_accumulation_steps": 2,
    }
    model = {"lora": {"r": 2, "alpha": 4, "dropout": 0.2, "targets": ["q_proj", "v_proj"]}}
    tree = tiny_tree(
        tmp_path,
        "qwen2_vl",
        "zero3",
        train=train,
        model=model,
        data={"num_workers": 1},
        objective={"learn_temperature": True},
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    two_ranks.run(
        train_undisturbed,
        parse_config(tree | {"train": tree["train"] | {"output_dir": str(tmp_path / "undisturbed")}}),
        timeout=280,
    )

    killer = Killer(tmp_path / "recipe.yaml", tmp_path / "killed")
    for _ in range(KILLS):
        killer.kill_once()
    assert killer.begin().wait(timeout=280) == 0, killer.log.read_text()
    print(f"{KILLS} kills under {LAUNCHER}: {dict(killer.struck)}")
    assert sum(killer.struck.values()) == KILLS
    for name in ("metrics.jsonl", "coverage.jsonl"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "undisturbed" / name).read_text()
    whole, resumed = content(tmp_path / "undisturbed"), content(tmp_path / "killed")
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if whole[name] != resumed[name]] == []
