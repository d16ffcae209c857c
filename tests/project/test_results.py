"""The page of results is what the recorded runs say."""

from pathlib import Path

from pdfx.study.plan import read_study
from pdfx.study.results import write_page

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results.md"
STUDIES = [Path("launch/studies/paths.yaml"), Path("launch/studies/limited.yaml")]


def test_the_page_of_results_follows_from_the_records(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    write_page([(path, read_study(path)) for path in STUDIES], tmp_path / "results.md")
    words = " ".join(str(path) for path in STUDIES)
    again = f"Run pdfx ablate {words} --tables-only --page docs/results.md"
    assert PAGE.read_text(encoding="utf-8") == (tmp_path / "results.md").read_text(encoding="utf-8"), again
