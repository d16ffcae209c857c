"""The hook of ``docs/hooks.md`` on two ranks."""

import json
import re
from pathlib import Path

import pytest
from distributed.test_trainer_on_ranks import run_trainer
from tiny_runs import ROOT, tiny_config, tiny_shards

from pdfx.checkpoint.directory import newest_whole
from pdfx.config import Config

EXAMPLE = re.search(r"```python\n(.*?)```", (ROOT / "docs/hooks.md").read_text(encoding="utf-8"), re.DOTALL)[1]
NOTES = """
from pdfx.train.hooks import Hook

class SmoothLoss(Hook):
    def note(self, run, *words):
        with (run.path / f"moments-{run.world.rank}").open("a") as stream:
            print(run.step, *words, file=stream)

    def start(self, run):
        self.note(run, "start", run.total_steps)

    def batch_ready(self, run, batch):
        self.note(run, "batch", batch.pairs)

    def step_done(self, run, metrics):
        self.note(run, "done", *(name for name in ("loss", "samples", "skipped") if name in metrics))

    def evaluated(self, run, results):
        self.note(run, "evaluated", *results)

    def end(self, run):
        self.note(run, "end")
"""
UNFIT = EXAMPLE.replace("return self.mean", "return {self.mean}")


def recipe(folder: Path, run: str, code: str = EXAMPLE, data: dict | None = None, **train) -> Config:
    (folder / "smooth.py").write_text(code, encoding="utf-8")
    train = {"hooks": [f"{folder}/smooth.py:SmoothLoss"], "output_dir": str(folder / run), "max_steps": 4} | train
    return tiny_config(folder, train=train, model={"trust_remote_code": True}, data=data or {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hooks")


def test_the_hook_of_the_page_adds_its_figure_and_a_resume_continues_its_state(folder, two_ranks):
    assert two_ranks.run(run_trainer, recipe(folder, "whole")) == ["finished", "finished"]
    assert two_ranks.run(run_trainer, recipe(folder, "stopped"), 1) == ["stopped", "stopped"]
    state = newest_whole(folder / "stopped")[0].state()["hook smooth.py:SmoothLoss"]
    assert two_ranks.run(run_trainer, recipe(folder, "stopped")) == ["finished", "finished"]
    whole, stopped = ((folder / run / "metrics.jsonl").read_text() for run in ("whole", "stopped"))
    assert whole == stopped
    mean, records = None, [json.loads(line) for line in whole.splitlines()]
    for record in records:
        mean = record["loss"] if mean is None else 0.9 * mean + 0.1 * record["loss"]
        assert record["loss_smooth"] == pytest.approx(mean, rel=1e-12)
    assert len(records) == 4 and state == records[0]["loss_smooth"]


def test_a_hook_is_called_at_every_moment_on_every_rank_after_the_guards(folder, two_ranks):
    data = {"evaluation": str(tiny_shards(folder / "evaluation", samples=4))}
    assert two_ranks.run(run_trainer, recipe(folder, "noted", NOTES, data, max_steps=2)) == ["finished", "finished"]
    done = "done loss samples skipped"
    expected = ["0 start 2", "0 batch 2", f"1 {done}", "1 batch 2", f"2 {done}", "2 evaluated shards", "2 end"]
    for rank in (0, 1):
        assert (folder / "noted" / f"moments-{rank}").read_text().splitlines() == expected


def test_a_state_that_cannot_be_saved_is_refused_in_one_sentence(folder, two_ranks):
    told, other = two_ranks.run(run_trainer, recipe(folder, "unfit", UNFIT))
    assert "The state of the hook smooth.py:SmoothLoss cannot be saved" in told and "\n" not in told
    assert other == "exit code 2"
