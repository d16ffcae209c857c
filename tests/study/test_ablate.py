"""``pdfx ablate`` from real runs to tables."""

import json
import sys

import pytest
import warm
import yaml
from command_line import run_pdfx, told
from tiny_runs import tiny_shards, tiny_tree

from pdfx.study import runs as study_runs
from pdfx.study.plan import read_study
from pdfx.study.records import read_record
from pdfx.study.runs import Runner

ROWS = """
  one: {about: "one embedding", settings: {model.paths: 1, model.prefix.length: 0, objective.path_weight: 0}}
  longer: {settings: {model.paths: 1, model.prefix.length: 0, objective.path_weight: 0}, equal: flops}
  two: {settings: {objective.diversity: none}}
  together: {ensemble_of: one, members: 2}
"""


@pytest.fixture
def study(tmp_path):
    tests = [str(tiny_shards(tmp_path / name, 12)) for name in ("near", "far")]
    tree = tiny_tree(tmp_path, data={"evaluation": tests}, train={"max_steps": 2})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    path = tmp_path / "study.yaml"
    where = f"recipe: {tmp_path}/recipe.yaml\nout: {tmp_path}/out\n"
    path.write_text(f"{where}seeds: [1]\nbaselines: [one]\nbudget: two\nbootstraps: 200\nprobe_steps: 2\nrows:{ROWS}")
    return path


@pytest.fixture
def warm_runs(monkeypatch):
    """Runs that start warm. The server ends with the thread that starts it, so that has to be this one."""
    warm.run([sys.executable, "-c", ""], check=True)
    monkeypatch.setattr(study_runs, "Popen", warm.Popen)


@pytest.mark.process
def test_a_study_is_made_resumed_and_shown(study, warm_runs, capfd):
    assert run_pdfx(capfd, "ablate", study, "--number", "1")[0] == 0
    read = read_study(study)
    assert [run.name for run in Runner(read).missing()] == ["one-seed1", "two-seed1", "one-seed1001"]
    code, out, err = run_pdfx(capfd, "ablate", study)
    assert code == 0, err
    assert "done, 3 of 3." in err
    page = (study.parent / "out" / "results.md").read_text()
    assert out.strip().endswith("results.md")
    rows = {name: read_record(read.record_folder, f"{name}-seed1") for name in read.rows}
    facts = {name: record.facts for name, record in rows.items()}
    assert facts["one"]["steps"] == 2 < facts["longer"]["steps"]
    assert facts["longer"]["flops"] == pytest.approx(facts["two"]["flops"], rel=0.35)
    assert facts["together"]["flops"] > 1.9 * facts["one"]["flops"]
    assert "`one`: one embedding" in page and "| `two` |" in page and "4 rows with 1 seeds each." in page
    assert (study.parent / "out" / "results-study.svg").read_bytes().startswith(b"<?xml")
    assert "data:image/svg+xml" in (study.parent / "out" / "results.html").read_text()
    assert not list((study.parent / "out" / "runs").glob("*/checkpoints"))
    (read.record_folder / "together-seed1.json").unlink()
    (study.parent / "out" / "runs" / "one-seed1001").rename(study.parent / "elsewhere")
    assert "together-seed1 needs its members' embeddings" in run_pdfx(capfd, "ablate", study, "--tables-only")[2]
    # Nothing is left to make; a row that changes is not mixed with its former runs.
    assert Runner(read).missing() == []
    study.write_text(study.read_text().replace("objective.diversity: none", "objective.diversity: hsic"))
    (read.record_folder / "two-seed1.json").rename(study.parent / "two-seed1.json")
    message = told(run_pdfx(capfd, "ablate", study))
    assert "longer-seed1.json was made with objective.diversity = 'none', and not 'hsic', as row 'two' has" in message
    (study.parent / "two-seed1.json").rename(read.record_folder / "two-seed1.json")
    (read.record_folder / "longer-seed1.json").unlink()
    message = told(run_pdfx(capfd, "ablate", study))
    assert "two-seed1.json was made with objective.diversity = 'none', and not 'hsic', as row 'two' has now" in message


@pytest.mark.process
def test_a_run_that_fails_is_named_with_its_log(study, warm_runs, capfd):
    study.write_text(study.read_text().replace("objective.diversity: none", "model.matryoshka_dims: [9999]"))
    code, _, err = run_pdfx(capfd, "ablate", study, "--rows", "two")
    assert code == 1
    assert "two-seed1 ended with code 2: " in err and str(study.parent / "out" / "runs" / "two-seed1.log") in err


def test_runs_are_listed_with_their_numbers(study, capfd):
    code, out, _ = run_pdfx(capfd, "ablate", study, "--list")
    assert (code, out.split("\n")[:4]) == (0, ["0 one-seed1", "1 longer-seed1", "2 two-seed1", "3 one-seed1001"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "two,three"], "--rows names 'three', which is not a row of the study; it has one, longer, two"),
        (["--number", "4"], "--number is 4, and the study has the runs 0 to 3"),
    ],
)
def test_what_the_study_does_not_have_is_refused(study, capfd, words, message):
    assert message in told(run_pdfx(capfd, "ablate", study, *words))


def test_settings_that_do_not_fit_the_recipe_are_refused_before_anything_runs(study, capfd, monkeypatch):
    monkeypatch.setattr(study_runs, "Popen", lambda *_, **__: pytest.fail("a run was started"))
    study.write_text(study.read_text().replace("objective.diversity: none", "objective.divers: none"))
    assert "unknown key 'objective.divers'; did you mean 'objective.diversity'?" in told(
        run_pdfx(capfd, "ablate", study)
    )


def test_a_recipe_without_an_evaluation_is_refused(study, capfd):
    recipe = study.parent / "recipe.yaml"
    tree = yaml.safe_load(recipe.read_text())
    del tree["data"]["evaluation"]
    recipe.write_text(json.dumps(tree))
    assert "names no data.evaluation" in told(run_pdfx(capfd, "ablate", study))
