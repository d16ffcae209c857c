"""``pdfx checkpoints`` tells which checkpoints there are and which are whole, by words and by its exit code."""

import json

import pytest
from checkpoint.made import flip, make_checkpoint

from pdfx.checkpoint.directory import PARTIAL
from pdfx.checkpoint.retention import age_text, size_text
from pdfx.cli.app import main
from pdfx.config import dump_config, parse_config
from pdfx.config.run_files import CHECKPOINTS


@pytest.fixture
def run(tmp_path):
    for step, score in ((100, 0.5), (200, 0.25), (300, None)):
        make_checkpoint(tmp_path, step, score)
    (tmp_path / CHECKPOINTS / ("step-00000400" + PARTIAL)).mkdir()
    train = {
        "output_dir": "run",
        "deepspeed": "zero.json",
        "per_device_train_batch_size": 4,
        "max_steps": 10,
        "save_steps": 100,
    }
    tree = {
        "model": {"path": "x"},
        "data": {"train": "x"},
        "train": train | {"eval_steps": 50, "metric_for_best_model": "score"},
    }
    (tmp_path / "config.yaml").write_text(dump_config(parse_config(tree)))
    return tmp_path


def call(capsys, *words) -> tuple[int, str, str]:
    code = 0
    try:
        main(["checkpoints", *map(str, words)])
    except SystemExit as stop:
        code = stop.code or 0
    return code, *capsys.readouterr()


def test_whole_checkpoints_are_listed_with_the_best_marked_and_the_code_is_0(run, capsys):
    code, out, _ = call(capsys, run)
    assert code == 0
    lines = [" ".join(line.strip("│┃ ").split()) for line in out.splitlines()]
    assert "score" in out
    for step, state in (("400", "unfinished"), ("300", "whole"), ("200", "0.25 │ whole"), ("100", "0.5 │ whole, best")):
        assert any(line.startswith(step) and line.endswith(state) for line in lines), (step, out)


def test_a_damaged_one_is_told_only_where_contents_are_verified_and_the_code_is_then_1(run, capsys):
    flip(run / CHECKPOINTS / "step-00000100/config.yaml")
    assert call(capsys, run)[0] == 0
    code, out, _ = call(capsys, run, "--verify")
    assert code == 1
    assert f"{run}/checkpoints/step-00000100 is not a whole checkpoint: config.yaml is damaged" in out
    assert "whole, contents verified, best" in " ".join(out.split())


def test_a_missing_file_is_told_at_once(run, capsys):
    (run / CHECKPOINTS / "step-00000300/config.yaml").unlink()
    code, out, _ = call(capsys, run, "--json", "-")
    rows = {row["step"]: row for row in json.loads(out)}
    assert code == 1 and "config.yaml is missing" in rows[300]["problem"]
    assert (rows[100]["best"], rows[200]["best"], rows[200]["metric"], rows[400]["finished"]) == (
        True,
        False,
        0.25,
        False,
    )
    assert rows[100]["bytes"] > 200 and rows[100]["age"] >= 0


def test_a_folder_that_is_no_run_is_a_mistake_with_code_2(tmp_path, capsys):
    code, _, error = call(capsys, tmp_path)
    assert code == 2 and "is not a run directory: it has no folder 'checkpoints'" in " ".join(error.split())


def test_sizes_and_ages_are_told_in_the_unit_that_fits():
    assert [size_text(count) for count in (7, 2048, 3 * 2**30)] == ["7 B", "2.0 KiB", "3.0 GiB"]
    assert [age_text(seconds) for seconds in (12, 90, 5400, 86400 * 3)] == ["12 s", "1.5 min", "1.5 h", "3.0 d"]
