"""A checkpoint counts only when it is whole, and files that could run code are refused."""

import os

import pytest
import torch

from pdfx.config import TrainSection
from pdfx.errors import UserError
from pdfx.train.checkpoint import DIRECTORY, PARTIAL, SafeCheckpointEngine, directory_name, find_checkpoint, newest_whole, prune, seal
from pdfx.train.run_directory import open_run_directory
from pdfx.train.telemetry import drop_records


def write_checkpoint(run, step: int):
    final = run / DIRECTORY / directory_name(step)
    partial = final.with_name(final.name + PARTIAL)
    (partial / "zero").mkdir(parents=True)
    (partial / "zero" / "shard.pt").write_bytes(b"x" * 100)
    seal(partial, final, step)
    return final


def test_the_newest_whole_checkpoint_is_found_and_the_others_are_told_with_the_reason(tmp_path):
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, step)
    (tmp_path / DIRECTORY / directory_name(5)).mkdir()
    (tmp_path / DIRECTORY / (directory_name(6) + PARTIAL)).mkdir()
    os.truncate(tmp_path / DIRECTORY / directory_name(4) / "zero/shard.pt", 99)
    (tmp_path / DIRECTORY / directory_name(3) / "zero/shard.pt").unlink()
    checkpoint, passed_over = newest_whole(tmp_path)
    assert checkpoint.step == 2
    assert len(passed_over) == 3
    assert "no readable manifest.json" in passed_over[0]
    assert "zero/shard.pt has 99 bytes instead of 100" in passed_over[1]
    assert "zero/shard.pt is missing" in passed_over[2]


def test_only_the_newest_checkpoints_stay(tmp_path):
    for step in (1, 20, 100):
        write_checkpoint(tmp_path, step)
    prune(tmp_path, 2)
    assert sorted(path.name for path in (tmp_path / DIRECTORY).iterdir()) == ["step-00000020", "step-00000100"]


def test_a_checkpoint_written_again_takes_the_place_of_the_old_one(tmp_path):
    final = write_checkpoint(tmp_path, 1)
    (final / "zero/shard.pt").write_bytes(b"damaged")
    write_checkpoint(tmp_path, 1)
    assert newest_whole(tmp_path)[0].path == final


def test_resume_takes_auto_never_or_a_whole_directory(tmp_path):
    final = write_checkpoint(tmp_path, 7)
    assert find_checkpoint(tmp_path, "never")[0] is None
    assert find_checkpoint(tmp_path, str(final))[0].step == 7
    with pytest.raises(UserError, match="is no whole checkpoint"):
        find_checkpoint(tmp_path, str(tmp_path))


def test_a_checkpoint_file_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"module": Harmful()}, tmp_path / "states.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        SafeCheckpointEngine().load(str(tmp_path / "states.pt"))
    assert not (tmp_path / "harm").exists()


def test_records_from_the_checkpoint_on_and_a_line_cut_short_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "evaluation/x": 1}\n{"step": 3}\n{"st')
    drop_records(path, 3)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 2, "evaluation/x": 1}\n'


def section(path, **values) -> TrainSection:
    return TrainSection(**{"output_dir": str(path), "deepspeed": "zero.json", "per_device_train_batch_size": 4, "max_steps": 10} | values)


def test_an_output_directory_that_is_a_file_a_strangers_or_taken_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made a run's directory"):
        open_run_directory(section(tmp_path / "file"))
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds 'thesis.tex' but no run"):
        open_run_directory(section(tmp_path / "stranger"))
    run = tmp_path / "run"
    write_checkpoint(run, 1)
    assert open_run_directory(section(run)) == run
    with pytest.raises(UserError, match="already holds a run and train.resume is 'never'"):
        open_run_directory(section(run, resume="never"))
