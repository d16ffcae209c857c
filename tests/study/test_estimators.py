"""The study of estimators: what it measures is what the shipped terms give, and what it writes is complete."""

import json
import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from pdfx.config import ObjectiveSection
from pdfx.objective.diversity.term import Diversity
from pdfx.study.estimator_report import claims, page, pivot
from pdfx.study.estimators import (
    CLOSED,
    DEFAULT,
    ESTIMATORS,
    LOGGED,
    NETWORK,
    RACERS,
    estimate_rows,
    follow,
    limit_of,
)
from pdfx.study.known_dependence import gaussian, unit


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Folder, and what the command printed as JSON."""
    folder = tmp_path_factory.mktemp("study") / "new"
    from typer.testing import CliRunner

    from pdfx.cli.app import app

    result = CliRunner().invoke(app, ["estimators", "--quick", "--out", str(folder), "--json", "-"])
    assert result.exit_code == 0, result.output
    return folder, json.loads(result.stdout)


def test_the_command_writes_json_tables_and_a_figure(study):
    folder, printed = study
    assert json.loads((folder / "estimators.json").read_text()) == printed
    text = (folder / "estimators.md").read_text()
    assert text == page(printed)
    assert all(f"\n## {part}" in text for part in ("Claims", "After", "Over", "Gradients", "Races"))
    assert ElementTree.parse(folder / "estimators.svg").getroot().tag.endswith("svg")


def test_every_estimator_is_measured_in_every_part(study):
    _, printed = study
    assert {row["estimator"] for row in printed["estimates"]} == {*CLOSED, *NETWORK}
    assert {row["estimator"] for row in printed["gradients"]} == set(ESTIMATORS)
    assert {row["estimator"] for row in printed["races"]} == set(RACERS)
    numbers = [value for part in printed.values() for row in part for value in row.values() if type(value) is float]
    assert len(numbers) > 500 and all(map(math.isfinite, numbers))


@pytest.mark.parametrize("estimators", [CLOSED, NETWORK])
def test_an_estimate_is_the_value_of_the_term_in_a_run(estimators):
    """Each term alone, step by step as ``Objective`` does it: measured first, learned then."""
    known = gaussian(4, 0.5)
    found = follow(known, estimators, 32, (2, 5), seed=3)
    for name in estimators:
        generator = torch.Generator().manual_seed(3)
        term = Diversity(ObjectiveSection.model_validate(ESTIMATORS[name]), 2, 4, seed=3)
        for step in range(1, 6):
            both, everyone = known.draw(32, generator), torch.ones(32, dtype=torch.bool)
            measured = term(both, everyone, step)
            term.learn(both, everyone)
        assert found[name][1] == pytest.approx(float(measured.metrics["diversity"].detach()), rel=1e-6)
        if name == DEFAULT:
            assert found[LOGGED][1] == pytest.approx(float(measured.metrics["mutual_information"]), rel=1e-6)


def test_rows_say_mean_error_bias_and_share_of_the_seeds():
    known = gaussian(4, 0.5)
    values = [follow(known, [LOGGED], 64, (3, 8), seed)[LOGGED][1] for seed in range(3)]
    row = estimate_rows(known, (LOGGED,), (3, 8), 3, 64)[-1]
    mean = sum(values) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    assert row["steps"] == 8 and row["mean"] == pytest.approx(mean)
    assert row["deviation"] == pytest.approx(deviation) and row["error"] == pytest.approx(deviation / math.sqrt(3))
    assert row["bias"] == pytest.approx(mean - known.information)
    assert row["share_of_limit"] == pytest.approx(mean / limit_of(LOGGED, known))


def test_the_learning_rate_is_that_of_the_network():
    known = gaussian(4, 0.5)
    slow, fast = (follow(known, NETWORK[:1], 32, (6,), 0, rate)[NETWORK[0]][0] for rate in (1e-9, 1e-2))
    assert abs(slow) < 1e-5 < fast


@pytest.mark.parametrize("known", [unit(64, 0.5), unit(64, 0.5, uneven=True, mean=True), unit(256, 0.5, True, True)])
def test_the_default_reaches_four_fifths_of_what_endless_rows_would_give(known):
    for estimator, (value,) in follow(known, (LOGGED, DEFAULT), 128, (30,), seed=0).items():
        assert value >= 0.8 * limit_of(estimator, known)


def test_a_claim_that_was_missed_is_shown_as_missed():
    estimates = [
        {"case": case, "dimension": 8, "estimator": name, "steps": 9, "share_of_limit": 0.7, "mean": 1.0, "error": 0.1}
        for case in ("unit", "independent unit")
        for name in (LOGGED, DEFAULT, "cross_correlation")
    ]
    race = {"estimator": DEFAULT, "dimension": 100, "learning_rate": 1e-3, "steps": 9, "offset": False}
    races = [race | {"r2": 0.19, "recall": 1.0}, race | {"r2": 0.19, "recall": 0.5}]
    found = claims({"estimates": estimates, "gradients": [], "races": races})
    assert [claim["holds"] for claim in found] == [False, False, False, False, True, False]


def test_a_pivot_has_a_line_for_each_case_and_a_dash_for_what_is_missing():
    rows = [
        {"case": "a", "kind": 1, "value": 2},
        {"case": "a", "kind": 5, "value": 3},
        {"case": "b", "kind": 5, "value": 4},
    ]
    lines = pivot(rows, {"case": "case"}, "kind", lambda row: str(row["value"])).splitlines()
    assert lines == ["| case | 1 | 5 |", "| --- | --- | --- |", "| a | 2 | 3 |", "| b | – | 4 |"]
