import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command_line import run_pdfx, told
from PIL import Image
from tiny_exports import HIDDEN, PATHS, tiny_export
from tiny_runs import tiny_config, tiny_shards

from pdfx import __version__
from pdfx.config import dump_config

COMMANDS = ["init", "train", "convert", "checkpoints", "embed", "evaluate", "diversity", "report", "estimators"]
COMMANDS += ["shards build", "shards check", "shards describe", "shards split", "shards merge"]


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny_shards(folder)
    return folder


@pytest.fixture
def pdfx(capfd):
    """Runs a command line; gives its exit code, stdout and stderr."""
    return partial(run_pdfx, capfd)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(pdfx, command):
    code, out, _ = pdfx(*command.split(), "--help")
    assert code == 0
    assert "Example" in out and f"pdfx {command} " in out


@pytest.mark.process
def test_help_names_every_command_and_imports_no_torch():
    script = (
        "import sys\nfrom pdfx.cli.app import main\ntry:\n    main(['--help'])\nfinally:\n    print('torch' in "
        "sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    *page, imported = result.stdout.splitlines()
    assert imported == "False"
    assert all(re.search(rf"^│ {command.split()[0]}\b", "\n".join(page), re.MULTILINE) for command in COMMANDS)


def test_version_is_the_packages(pdfx):
    assert pdfx("--version") == (0, f"pdfx {__version__}\n", "")


@pytest.mark.process
def test_shards_are_built_checked_and_described(pdfx, data, tmp_path):
    out = tmp_path / "shards"
    code, text, _ = pdfx("shards", "build", data / "records.jsonl", "--out", out, "--samples-per-shard", "7")
    assert code == 0 and "24 samples in 4 shards" in text
    assert pdfx("shards", "check", out, "--full")[:2] == (0, f"{out} is sound.\n")
    code, text, _ = pdfx("shards", "describe", out)
    assert code == 0 and re.search(r"samples\s+│\s+24", text)


def test_checking_damaged_shards_names_the_shard_and_fails(pdfx, data, tmp_path):
    for path in (data / "shards").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    broken = tmp_path / "00001.tar"
    broken.write_bytes(broken.read_bytes()[:-1024])
    code, text, _ = pdfx("shards", "check", tmp_path)
    assert code == 1
    assert "00001.tar is truncated" in text


def test_embed_writes_the_file_and_says_its_shape(pdfx, export, tmp_path):
    (tmp_path / "items.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    code, out, _ = pdfx("embed", export, tmp_path / "items.jsonl", "--out", tmp_path / "out.npy", "--side", "target")
    assert (code, out) == (0, f"{tmp_path / 'out.npy'}: 2 x {PATHS} x {HIDDEN}\n")
    assert np.load(tmp_path / "out.npy").shape == (2, PATHS, HIDDEN)


def test_evaluate_prints_what_it_writes_as_json(pdfx, export, data, tmp_path):
    code, out, _ = pdfx("evaluate", export, data / "shards", "--json", tmp_path / "metrics.json")
    assert code == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    row = re.findall(r"│ fused .*", out)
    assert len(row) == 2
    for direction, line in zip(("query_to_target", "target_to_query"), row, strict=True):
        assert [float(number) for number in re.findall(r"\d\.\d{3}", line)] == [
            round(metrics[f"{direction}/fused/{name}"], 3)
            for name in ("recall@1", "recall@5", "recall@10", "mrr", "ndcg@10")
        ]


def test_evaluate_on_several_data_sets_prints_a_row_of_each_and_mmebs_averages(pdfx, export, data, tmp_path):
    for name in ("GQA", "mine"):
        shutil.copytree(data / "shards", tmp_path / name)
    code, out, _ = pdfx("evaluate", export, tmp_path / "GQA", tmp_path / "mine", "--json", tmp_path / "metrics.json")
    assert code == 0
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert list(told["data_sets"]) == ["GQA", "mine"] and len(told["mmeb_missing"]) == 35
    assert told["averages"]["Overall"]["of"] == 36
    assert len(re.findall(r"│ GQA ", out)) == len(re.findall(r"│ Overall \(1 of 36\) ", out)) == 10
    assert "35 of MMEB's 36 data sets are missing" in out


def test_diversity_prints_the_figures_that_it_writes_as_json_and_writes_its_page(pdfx, export, data, tmp_path):
    page, file = tmp_path / "diversity.html", tmp_path / "diversity.json"
    code, out, _ = pdfx("diversity", export, data / "shards", "--out", page, "--json", file)
    assert code == 0 and out.endswith(f"{page}\n")
    figures = json.loads(file.read_text())
    assert figures["paths"] == PATHS and page.read_text().startswith("<!DOCTYPE html>")
    for side, name, words in (("query", "cosine", "query, centred cosine"), ("target", "cka", "target, linear CKA")):
        own = figures["likeness"][side][name]
        assert re.search(rf"│ {words} +│ +{own['mean']:.3f} │ +{own['independent']:.3f} ±", out)
    oracle = figures["directions"]["query_to_target"]["oracle"]["mrr"]
    assert f"{oracle['advantage']:.3f} ± {oracle['error']:.3f}" in out
    assert "wins by luck" in out and "standard error" in out


def test_train_prints_the_plan_of_a_dry_run_with_overrides(pdfx, data):
    recipe = data / "recipe.yaml"
    recipe.write_text(dump_config(tiny_config(data.parent / "recipe")), encoding="utf-8")
    code, out, _ = pdfx("train", recipe, "train.max_steps=2", "--dry-run")
    assert code == 0
    assert "max_steps: 2" in out
    assert "trained" in out
    assert "no effect" not in out and "hardly learn" not in out
    _, out, _ = pdfx(
        "train", recipe, "train.warmup_steps=9", "data.mixture_temperature=2", "train.learning_rate=1e-6", "--dry-run"
    )
    for warning in (
        "train.warmup_steps is 9 and the run has 3 steps",
        "data.mixture_temperature has no effect",
        "will hardly learn anything",
    ):
        assert warning in out
    assert "no directory of shards at /nowhere" in told(pdfx("train", recipe, "data.evaluation=/nowhere", "--dry-run"))


@pytest.mark.process
def test_mistakes_are_told_in_one_sentence_without_a_stack_trace(pdfx, export, data, tmp_path):
    """One command after another, because each takes milliseconds and starting a process seconds."""
    items = tmp_path / "items.jsonl"
    items.write_text('{"text": "a"}\n{"images": ["absent.png"]}\n')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {path: x, pathes: 3}\n")
    corrupt = tmp_path / "corrupt"
    corrupt.mkdir()
    (corrupt / "a.png").write_bytes(b"no picture")
    (corrupt / "records.jsonl").write_text('{"query": {"images": ["a.png"]}, "target": {"text": "a"}}\n')
    out = tmp_path / "out.npy"
    cases = {
        "line 2: there is no image": ("embed", export, items, "--out", out),
        "There is no directory": ("embed", tmp_path / "absent", items, "--out", out),
        "holds no config.json": ("evaluate", data, data / "shards"),
        "no directory of shards": ("evaluate", export, tmp_path / "absent"),
        "not a run directory": ("report", tmp_path, export, data / "shards", "--out", tmp_path / "report.html"),
        "unknown key 'model.pathes'; did you mean 'model.path": ("train", recipe),
        "There is no recipe": ("train", tmp_path / "absent.yaml"),
        "By kind: 1 unusable image.* the 10 bytes are not a picture in a known format": (
            "shards",
            "build",
            corrupt / "records.jsonl",
            "--out",
            tmp_path / "shards",
        ),
        "There is no directory of shards": ("shards", "describe", tmp_path / "absent"),
        "has no config.yaml": ("convert", tmp_path, "--out", tmp_path / "model"),
    }
    for sentence, words in cases.items():
        assert re.search(sentence, told(pdfx(*words))), words
    assert (
        not out.exists()
        and not (tmp_path / "report.html").exists()
        and not (tmp_path / "shards" / "index.json").exists()
    )


def test_a_sentence_with_brackets_is_printed_as_it_is(pdfx, export, tmp_path):
    name = tmp_path / "[red]absent[/red].jsonl"
    assert f"There is no input file {name}." == told(pdfx("embed", export, name, "--out", tmp_path / "out.npy"))


def test_a_missing_folder_of_the_output_is_named_before_any_work(pdfx, export, data):
    for command, option in (("evaluate", "--json"), ("embed", "--out")):
        message = told(pdfx(command, export, data / "shards", option, data / "absent" / "result.npy"))
        assert f"There is no folder {data / 'absent'}" in message


def test_a_dash_prints_json_alone_and_is_never_a_file(pdfx, export, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = pdfx("evaluate", export, data / "shards", "--json", "-")
    assert code == 0 and json.loads(out)["queries"] == 24
    for words in (
        ("report", data, export, data / "shards"),
        ("diversity", export, data / "shards"),
        ("shards", "describe", data / "shards", "--contact-sheet", "-"),
    ):
        assert "'-' is not a file name" in told(pdfx(*words, *(() if "describe" in words else ("--out", "-"))))
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_what_the_processor_refuses_is_named_counted_and_left_out_and_the_check_finds_it(pdfx, tmp_path):
    """A picture of a ratio that Qwen2-VL's own processor refuses, and texts that are cut."""
    export = tiny_export(tmp_path, "qwen2_vl")
    Image.new("RGB", (603, 3)).save(tmp_path / "strip.png")
    Image.new("RGB", (60, 40)).save(tmp_path / "sound.png")
    records = [{"key": "strip", "query": {"text": "a"}, "target": {"images": ["strip.png"]}}]
    records += [
        {"query": {"text": f"{i} {'word ' * 600}"}, "target": {"images": ["sound.png"], "text": str(i)}}
        for i in range(3)
    ]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert pdfx("shards", "build", tmp_path / "records.jsonl", "--out", tmp_path / "shards")[0] == 0

    code, out, error = pdfx("evaluate", export, tmp_path / "shards", "--json", tmp_path / "metrics.json")
    assert code == 0 and re.search(r"'strip'.*cannot be used: the processor refuses it \(.*200", error)
    assert (
        "1 samples cannot be used, so 1 queries and 1 targets are left out" in out
        and "texts of 3 queries and 0 targets are cut" in out
    )
    assert (
        "3 queries among 3 targets, 1 right on average" in out and "chance: the expected value of a random order" in out
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [metrics[name] for name in ("queries", "targets", "left_out", "truncated_queries")] == [3, 3, 1, 3]
    assert "max_corrupt_share" in told(pdfx("evaluate", export, tmp_path / "shards", "--max-corrupt-share", "0"))

    assert pdfx("shards", "check", tmp_path / "shards", "--full")[0] == 0
    for folder in (export, tmp_path / "backbone"):
        code, out, _ = pdfx("shards", "check", tmp_path / "shards", "--full", "--processor", folder)
        assert (
            code == 1
            and len(out.splitlines()) == 1
            and re.search(r"'strip'.*cannot be used: of its target, the processor refuses it \(.*200", out)
        )
    assert "--full" in told(pdfx("shards", "check", tmp_path / "shards", "--processor", export))
    assert "processor" in told(
        pdfx("shards", "check", tmp_path / "shards", "--full", "--processor", tmp_path / "shards")
    )


def test_a_tilde_after_an_equals_sign_is_the_home_directory(pdfx, export, data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"There is no folder {tmp_path / 'absent'}" in told(
        pdfx("embed", export, data / "shards", "--out=~/absent/result.npy")
    )
    assert "There is no folder ~" in told(pdfx("embed", export, data / "shards", "--out", "~/absent/result.npy"))


def test_what_the_system_refuses_is_named(pdfx, export, data, tmp_path):
    (tmp_path / "taken.npy").mkdir()
    (tmp_path / "items.jsonl").write_text('{"text": "a"}\n')
    assert (
        told(pdfx("embed", export, tmp_path / "items.jsonl", "--out", tmp_path / "taken.npy"))
        == f"{tmp_path / 'taken.npy'}: Is a directory."
    )


@pytest.mark.process
def test_the_installed_module_ends_with_2_on_a_mistake(tmp_path):
    command = [sys.executable, "-m", "pdfx", "shards", "describe", str(tmp_path)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert "no index.json" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.process
def test_a_shell_completes_commands_and_the_recipes_of_init():
    for words, expected in (("pdfx con", ["convert"]), ("pdfx init folder --recipe qwen2-vl-2", ["qwen2-vl-2b"])):
        variables = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_PDFX_COMPLETE": "complete_bash"}
        command = [sys.executable, "-m", "pdfx"]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == expected, done.stderr


def test_init_fills_an_empty_folder_only_and_names_the_recipes_that_there_are(pdfx, tmp_path):
    (tmp_path / "folder").mkdir()
    code, out, _ = pdfx("init", tmp_path / "folder")
    assert code == 0 and "launch/slurm/srun.sbatch" in out and "pdfx train recipe.yaml --dry-run" in out
    assert "is not empty" in told(pdfx("init", tmp_path / "folder"))
    assert "one of llava-1.6-7b-hr, llava-1.6-7b-lr, qwen2-vl-2b" in told(pdfx("init", tmp_path / "x", "--recipe", "y"))
    assert not (tmp_path / "x").exists()
