"""The names that ``pdfx`` itself offers."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launching import environment
from tiny_runs import ROOT, tiny_tree

import pdfx

STUB = ast.parse((ROOT / "pdfx/__init__.pyi").read_text(encoding="utf-8"))


def python(script: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.process
def test_importing_pdfx_imports_nothing_else_and_its_rooms_no_torch(tmp_path):
    script = "import sys; before = set(sys.modules); import pdfx\n"
    script += (
        "print(sorted(n for n in set(sys.modules) - before if n.partition('.')[0] not in sys.stdlib_module_names))\n"
    )
    script += "pdfx.train, pdfx.evaluate, pdfx.load_config, pdfx.ShardedDataset\nprint('torch' in sys.modules)"
    assert python(script, tmp_path) == "['pdfx']\nFalse\n"


def test_a_type_checker_sees_the_names_that_there_are():
    listed = next(node for node in STUB.body if isinstance(node, ast.Assign))
    assert sorted(ast.literal_eval(listed.value)) == sorted(pdfx.__all__)
    typed = {node.names[0].asname: node.module for node in STUB.body if isinstance(node, ast.ImportFrom)}
    assert set(typed) == set(pdfx.__all__)
    for name, module in typed.items():
        function = getattr(__import__(module, fromlist=[name]), name)
        offered = getattr(pdfx, name)
        assert getattr(offered, "__wrapped__", offered) is function
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = pdfx.trian


def test_a_room_of_a_functions_name_is_a_package_and_a_function():
    from pdfx.train.schedule import count_steps

    assert callable(pdfx.train) and pdfx.train.schedule.count_steps is count_steps


@pytest.mark.process
def test_the_documented_code_trains_converts_and_evaluates_and_trains_again_in_one_process(tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/installing.md").read_text(), re.DOTALL)
    (tmp_path / "shards").mkdir()
    tree = tiny_tree(tmp_path, stage="zero2", train={"output_dir": "runs/first", "max_steps": 2, "save_steps": 2})
    (tmp_path / "shards/test").symlink_to(tree["data"]["train"])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    again = (
        "import signal\nbefore = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)]\n"
        f"{block}\n"
        "pdfx.train(pdfx.load_config('recipe.yaml', ['train.seed=1', 'train.output_dir=runs/second']))\n"
        "print([signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)] == before)\n"
        "import threading; print([thread.name for thread in threading.enumerate() if 'signals' in thread.name])"
    )
    printed = python(again, tmp_path).splitlines()
    assert 0 <= float(next(line for line in printed if re.fullmatch(r"[01]\.\d+", line))) <= 1
    assert printed[-2:] == ["True", "[]"]
    first, second = ((tmp_path / f"runs/{name}/metrics.jsonl").read_text() for name in ("first", "second"))
    assert first == second and first.count("\n") == 2
