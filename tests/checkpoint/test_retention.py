"""Which checkpoints stay."""

import json
import subprocess

import pytest
from checkpoint.made import flip, make_checkpoint

from pdfx.checkpoint.manifest import VERSION
from pdfx.checkpoint.retention import Retention, chosen_checkpoint, prune
from pdfx.config import TrainSection
from pdfx.config.run_files import CHECKPOINTS, MANIFEST
from pdfx.errors import UserError


def left(run) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / CHECKPOINTS).iterdir())


SCORES = {10: 0.2, 20: 0.7, 30: 0.7, 40: 0.1, 50: float("nan"), 60: 0.3}


@pytest.mark.parametrize(
    ("rule", "stays"),
    [
        (Retention(2), [50, 60]),
        (Retention(10), [10, 20, 30, 40, 50, 60]),
        (Retention(1, every=20), [20, 40, 60]),
        (Retention(1, metric="score"), [20, 60]),
        (Retention(1, metric="score", greater_is_better=False), [40, 60]),
        (Retention(1, every=30, metric="score"), [20, 30, 60]),
        (Retention(1, metric="another"), [60]),
    ],
)
def test_the_newest_every_so_many_steps_one_and_the_best_stay(tmp_path, rule, stays):
    for step, score in SCORES.items():
        make_checkpoint(tmp_path, step, score)
    prune(tmp_path, rule, 60)
    assert left(tmp_path) == stays


def test_a_damaged_checkpoint_takes_no_whole_ones_place(tmp_path):
    paths = [make_checkpoint(tmp_path, step) for step in (1, 2, 3, 4)]
    (paths[2] / MANIFEST).unlink()
    prune(tmp_path, Retention(2), 4)
    assert left(tmp_path) == [2, 4]


def test_what_another_release_wrote_stays_and_is_told(tmp_path):
    paths = [make_checkpoint(tmp_path, step) for step in (1, 2, 3, 4)]
    (paths[1] / MANIFEST).write_text(
        json.dumps(json.loads((paths[1] / MANIFEST).read_text()) | {"version": VERSION + 1})
    )
    (told,) = prune(tmp_path, Retention(1), 4)
    assert left(tmp_path) == [2, 4]
    assert f"{paths[1]} cannot be read: its format is version {VERSION + 1}" in told


@pytest.mark.process
def test_one_that_cannot_be_removed_is_told_and_ends_nothing(tmp_path):
    for step in (1, 2, 3):
        make_checkpoint(tmp_path, step)
    # Owners may not remove what is marked so, root included.
    kept = tmp_path / CHECKPOINTS / "step-00000001/config.yaml"
    if subprocess.run(["chattr", "+i", kept], capture_output=True, check=False).returncode:
        pytest.skip("files cannot be made immutable here")
    try:
        (told,) = prune(tmp_path, Retention(1), 3)
    finally:
        subprocess.run(["chattr", "-i", kept], check=True)
    assert left(tmp_path) == [1, 3]
    assert "step-00000001 cannot be removed: Operation not permitted" in told


def test_later_checkpoints_of_a_run_that_went_back_are_left_alone(tmp_path):
    for step in (1, 2, 3, 9):
        make_checkpoint(tmp_path, step)
    prune(tmp_path, Retention(1), 3)
    assert left(tmp_path) == [3, 9]


def section(**values) -> TrainSection:
    return TrainSection(
        **{"output_dir": "run", "deepspeed": "zero.json", "per_device_train_batch_size": 4, "max_steps": 10} | values
    )


def test_a_user_chooses_by_step_the_newest_or_the_best(tmp_path):
    for step, score in SCORES.items():
        make_checkpoint(tmp_path, step, score)
    best = section(metric_for_best_model="score", eval_steps=1)
    assert [chosen_checkpoint(tmp_path, choice, best).step for choice in ("newest", "best", "40")] == [60, 20, 40]
    with pytest.raises(UserError, match="names no train.metric_for_best_model; choose one by its step"):
        chosen_checkpoint(tmp_path, "best", section())
    with pytest.raises(UserError, match="'latest' names no checkpoint; give a step, 'newest' or 'best'"):
        chosen_checkpoint(tmp_path, "latest", best)
    flip(tmp_path / CHECKPOINTS / "step-00000020/config.yaml")
    with pytest.raises(UserError, match="config.yaml is damaged"):
        chosen_checkpoint(tmp_path, "best", best)


def test_settings_that_would_keep_nothing_or_never_know_the_best_are_refused():
    with pytest.raises(
        ValueError,
        match="keep_steps is 150, at which nothing is saved; set it to a multiple of save_steps, which is 100",
    ):
        section(save_steps=100, keep_steps=150)
    for eval_steps in (None, 30):
        with pytest.raises(ValueError, match="set eval_steps to a number that divides save_steps"):
            section(save_steps=100, eval_steps=eval_steps, metric_for_best_model="x")
