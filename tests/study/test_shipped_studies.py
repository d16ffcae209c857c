"""The studies that come with the project fit their recipes."""

from pathlib import Path

import pytest

from pdfx.study.plan import planned_runs, read_study
from pdfx.study.runs import Runner

ROOT = Path(__file__).parents[2]
STUDIES = sorted(path for path in (ROOT / "launch" / "studies").glob("*.yaml") if not path.stem.startswith("recipe"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_row_of_a_shipped_study_fits_its_recipe(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = read_study(path)
    runner = Runner(study)
    settings = {
        run.row: runner.config(run).model_dump_json() for run in planned_runs(study) if run.seed == study.seeds[0]
    }
    plain = [row for row in settings if study.equal_of(row) == "steps"]
    assert len({settings[row] for row in plain}) == len(plain) > 1, "two rows are the same run"


def test_studies_are_found():
    assert {path.stem for path in STUDIES} == {"paths", "limited", "weights", "qwen2-vl-2b"}
