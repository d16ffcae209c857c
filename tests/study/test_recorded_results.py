"""The page about estimators shows what is recorded."""

import json
from pathlib import Path

from pdfx.study.estimator_report import claims, page
from pdfx.study.estimators import Plan, estimate_jobs, gradient_jobs, race_jobs

DOCS = Path(__file__).parents[2] / "docs"
RECORDED = json.loads((DOCS / "results/estimators/estimators.json").read_text(encoding="utf-8"))


def test_the_tables_and_the_pages_claims_are_those_of_the_recorded_figures():
    text = page(RECORDED)
    assert (DOCS / "results/estimators/estimators.md").read_text(encoding="utf-8") == text
    assert claims(RECORDED) == RECORDED["claims"]
    table = text.partition("## Claims\n")[2].partition("\n\n")[0]
    assert table in (DOCS / "estimators.md").read_text(encoding="utf-8")


def test_all_that_the_command_measures_is_recorded():
    plan = Plan()
    estimates = sum(len(job.args[1]) * len(job.args[2]) for job in estimate_jobs(plan))
    parts = {"estimates": estimates, "gradients": len(list(gradient_jobs(plan))), "races": len(list(race_jobs(plan)))}
    assert {part: len(RECORDED[part]) for part in parts} == parts
