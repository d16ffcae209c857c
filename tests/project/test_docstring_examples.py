"""The examples in the docstrings of pdfx's public names and of the trainer, run as a reader would run them.

They find in the working directory: ``shards`` (24 samples), ``recipe.yaml`` (two paths, three steps, trained into
``run``), ``backbone`` and ``export`` (a tiny LLaVA-NeXT, and an export of it). Those of ``train``, ``convert``,
``evaluate`` and ``Trainer`` run in that order, each with what the ones before it left.
"""

import ast
import doctest
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from launching import environment
from tiny_exports import tiny_export
from tiny_runs import ROOT, tiny_shards, tiny_tree

STUB = ast.parse((ROOT / "pdfx/__init__.pyi").read_text(encoding="utf-8"))
MODULES = {node.names[0].name: node.module for node in STUB.body if isinstance(node, ast.ImportFrom)}
MODULES["Trainer"] = "pdfx.train.trainer"
TOGETHER = ("train", "convert", "evaluate", "Trainer")
"""Too much for the process of the tests: an engine, ranks, handlers of signals."""
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples_of(name: str) -> list[doctest.DocTest]:
    """Those of a public name and, if it is a class, of its methods; each starts with no names."""
    public = getattr(import_module(MODULES[name]), name)
    return [test for test in doctest.DocTestFinder().find(public, name, module=False, globs={}) if test.examples]


def run(names: tuple[str, ...]) -> str:
    """What went wrong, with the expected and the actual output."""
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    for name in names:
        for test in examples_of(name):
            runner.run(test, out=report.append)
    return "".join(report)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    tiny_shards(folder)
    tiny_export(folder)
    data = {"train": "shards", "evaluation": "shards"}
    tree = tiny_tree(folder, data=data, train={"output_dir": "run", "deepspeed": "zero2", "save_steps": 3})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", sorted(set(MODULES) - set(TOGETHER)))
def test_the_examples_of_a_public_name_give_what_they_show(name, folder, monkeypatch):
    assert examples_of(name), "a public name shows how it is used"
    monkeypatch.chdir(folder)
    assert run((name,)) == ""


@pytest.mark.process
def test_the_examples_of_training_converting_and_evaluating_give_what_they_show(folder):
    assert all(map(examples_of, TOGETHER)), "a public name shows how it is used"
    done = subprocess.run(
        [sys.executable, "-c", f"import test_docstring_examples as t; print('wrong:', t.run({TOGETHER}))"],
        cwd=folder,
        env=environment(
            PYTHONPATH=os.pathsep.join(
                map(str, [ROOT, ROOT / "tests", ROOT / "tests/project", ROOT / "tests/support"])
            ),
            HF_HUB_OFFLINE="1",
        ),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0 and done.stdout.endswith("wrong: \n"), done.stdout + done.stderr
