"""Hooks that a recipe names: refused in one sentence, or loaded."""

import pytest
from tiny_runs import tiny_config

from pdfx.config import Config
from pdfx.errors import UserError
from pdfx.train.hooks.registry import load_hooks

HOOK = """
from pathlib import Path
from pdfx.train.hooks import Hook
Path(__file__).with_name("ran").touch()
class Mine(Hook):
    pass
number = 1
"""


def recipe(folder, *hooks: str, trusted: bool = True) -> Config:
    (folder / "mine.py").write_text(HOOK + f"# {folder}")
    return tiny_config(folder, train={"hooks": list(hooks)}, model={"trust_remote_code": trusted})


def test_code_that_is_not_trusted_does_not_run_and_the_cure_is_named(tmp_path):
    config = recipe(tmp_path, f"{tmp_path}/mine.py:Mine", trusted=False)
    with pytest.raises(UserError, match="train.hooks names .*mine.py:Mine.*allow it with model.trust_remote_code=true"):
        load_hooks(config)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("other.py:Mine", "'other.py' is not a file here .*give FILE.py:CLASS"),
        ("mine.py", "'' is not a file here"),
        ("mine.py:Yours", "has no class 'Yours' that extends pdfx.train.hooks.Hook"),
        ("mine.py:number", "has no class 'number'"),
        ("mine.py:Path", "has no class 'Path'"),
    ],
)
def test_what_is_not_a_hook_is_refused_by_its_name(tmp_path, monkeypatch, name, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"train.hooks names {name}, but .*{sentence}"):
        load_hooks(recipe(tmp_path, name))


def test_a_hook_is_named_once(tmp_path):
    with pytest.raises(UserError, match="mine.py:Mine twice"):
        load_hooks(recipe(tmp_path, *[f"{tmp_path}/mine.py:Mine"] * 2))


def test_a_relative_path_is_recorded_so_that_it_holds_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = recipe(tmp_path, "mine.py:Mine")
    (hook,) = load_hooks(config)
    assert (type(hook).__name__, hook.key) == ("Mine", "hook mine.py:Mine")
    assert config.train.hooks == [f"{tmp_path}/mine.py:Mine"]
