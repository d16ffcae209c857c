"""What a study's file may say, and which runs follow from it."""

import pytest

from pdfx.errors import UserError
from pdfx.study.plan import Planned, overrides, planned_runs, read_study

STUDY = """
recipe: recipe.yaml
out: build
seeds: [1, 2]
baselines: [one]
rows:
  one: {settings: {model.paths: 1, model.lora: null, model.matryoshka_dims: [2, 4]}}
  both: {ensemble_of: one, members: 2}
"""


@pytest.fixture
def study_of(tmp_path):
    def write(text: str):
        (tmp_path / "study.yaml").write_text(text)
        return read_study(tmp_path / "study.yaml")

    return write


def test_runs_of_the_first_seed_come_first_and_members_are_made_once(study_of):
    runs = planned_runs(study_of(STUDY))
    assert runs == [Planned("one", seed) for seed in (1, 1001, 2, 1002)]


def test_settings_become_words_of_the_command_line(study_of):
    settings = study_of(STUDY).rows["one"].settings
    assert overrides(settings) == ["model.paths=1", "model.lora=null", 'model.matryoshka_dims=["2", "4"]']


def test_the_row_of_the_budget_keeps_its_own_steps(study_of):
    study = study_of(STUDY.replace("out: build", "out: build\nequal: flops").replace("one]", "one]\nbudget: one"))
    assert study.equal_of("one") == "steps" and study.equal_of("both") == "flops"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("baselines: [one]", "baselines: [won]", "there is no row 'won'; did you mean 'one'?"),
        ("ensemble_of: one", "ensemble_of: on", "rows.both.ensemble_of names a row, and there is no row 'on'"),
        ("members: 2", "members: 1", "an ensemble needs ensemble_of, a row, and members of 2 or more"),
        ("members: 2", "members: 2, equal: flops", "remove settings, equal and share"),
        ("seeds: [1, 2]", "seeds: [1, 1]", "seeds holds one twice"),
        ("seeds: [1, 2]", "seed: [1]", "unknown key 'seed'"),
        ("out: build\n", "", "the key 'out' is missing"),
        ("  both:", "  a/b:", "the row 'a/b' needs a name"),
        ("recipe: recipe.yaml", "recipe: [", "is not a valid recipe"),
    ],
)
def test_a_mistake_is_named_with_its_file(study_of, old, new, message):
    with pytest.raises(Exception, match="study.yaml") as caught:
        study_of(STUDY.replace(old, new))
    assert message in str(caught.value) and not isinstance(caught.value, KeyError)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing.yaml, which should describe a study"):
        read_study(tmp_path / "nothing.yaml")


def test_an_ensemble_of_an_ensemble_is_refused(study_of):
    with pytest.raises(UserError, match="an ensemble of the ensemble 'both'"):
        study_of(STUDY + "  more: {ensemble_of: both, members: 2}\n")
