"""The directory of a run: what may be taken for one, and its records."""

import pytest
from checkpoint.made import make_checkpoint

from pdfx.checkpoint.directory import open_run_directory
from pdfx.config import TrainSection
from pdfx.errors import UserError
from pdfx.telemetry.metrics import drop_records


def test_records_from_the_checkpoint_on_and_a_line_cut_short_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "evaluation/x": 1}\n{"step": 3}\n{"st')
    drop_records(path, 3)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 2, "evaluation/x": 1}\n'


def section(path, **values) -> TrainSection:
    return TrainSection(
        **{"output_dir": str(path), "deepspeed": "zero.json", "per_device_train_batch_size": 4, "max_steps": 10}
        | values
    )


def test_an_output_directory_that_is_a_file_a_strangers_or_taken_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made a run's directory"):
        open_run_directory(section(tmp_path / "file"))
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds 'thesis.tex' but no run"):
        open_run_directory(section(tmp_path / "stranger"))
    run = tmp_path / "run"
    make_checkpoint(run, 1)
    assert open_run_directory(section(run)) == run
    with pytest.raises(UserError, match="already holds a run and train.resume is 'never'"):
        open_run_directory(section(run, resume="never"))
