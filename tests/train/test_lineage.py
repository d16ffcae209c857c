"""What a run that was started from a checkpoint's directory goes on from."""

import json

import pytest
from checkpoint.made import make_checkpoint

from pdfx.checkpoint.directory import STATE, open_checkpoint
from pdfx.checkpoint.resume import ORIGIN, descendants, origin, set_aside
from pdfx.config.run_files import CHECKPOINTS


def make(run, step: int, start: str | None = None):
    path = make_checkpoint(run, step, files={STATE: json.dumps({"step": step, ORIGIN: start}).encode()})
    return open_checkpoint(path)


def names(run) -> list[str]:
    return sorted(path.name for path in (run / CHECKPOINTS).iterdir())


def test_the_origin_is_what_the_recipe_names_and_is_handed_on(tmp_path):
    assert origin("auto", {"step": 0}) is None
    assert origin("auto", {ORIGIN: "x"}) == "x"
    assert origin(f"{tmp_path}/a/../b", {ORIGIN: "x"}) == f"{tmp_path}/b"


def test_only_what_was_written_since_the_start_descends_from_it_newest_first(tmp_path):
    start = make(tmp_path, 3)
    make(tmp_path, 5, "elsewhere")
    own = [make(tmp_path, step, str(start.path)).path for step in (8, 4)]
    damaged = make(tmp_path, 9, str(start.path))
    (damaged.path / STATE).unlink()
    assert descendants(tmp_path, start.path) == own


def test_later_checkpoints_are_set_aside_and_none_is_lost(tmp_path):
    for _ in range(2):
        for step in (1, 2, 3, 4):
            if not (tmp_path / CHECKPOINTS / f"step-{step:08d}").exists():
                make(tmp_path, step)
        start = open_checkpoint(tmp_path / CHECKPOINTS / "step-00000002")
        (told,) = set_aside(tmp_path, start)
        assert "step-00000003, step-00000004" in told
    assert names(tmp_path) == [
        f"step-0000000{name}" for name in ("1", "2", "3.aside", "3.aside-2", "4.aside", "4.aside-2")
    ]
    assert set_aside(tmp_path, start) == []


def test_all_are_set_aside_for_a_start_from_another_run(tmp_path):
    make(tmp_path / "own", 1)
    assert "step-00000001" in set_aside(tmp_path / "own", make(tmp_path / "other", 5))[0]
    assert names(tmp_path / "own") == ["step-00000001.aside"]
    assert names(tmp_path / "other") == ["step-00000005"]


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_words_are_no_directories(resume):
    assert origin(resume, {}) is None
