"""Every command and every piece of code in the README runs as it stands there, on small data and a small model of the
names it uses."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import warm
import yaml
from tiny_models import picture, tiny_backbone

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]
MAKE = [command for command in COMMANDS if command.startswith("make ")]
SMALL = [
    "train.max_steps=2",
    "train.gradient_accumulation_steps=2",
    "train.save_steps=2",
    "train.bf16=false",
    "model.prefix.length=4",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working directory with what the README's reader has: a checkout, records, pictures, a backbone."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("launch", "ds_configs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "pictures").mkdir()
    colours = ["red", "green", "blue", "yellow", "black", "white", "pink", "brown"]
    records = []
    for number, colour in enumerate([*colours, *(f"{colour}{i}" for colour in colours for i in range(3))]):
        picture(number).save(folder / "pictures" / f"{colour}.png")
        records.append({"query": {"text": f"a {colour} square"}, "target": {"images": [f"{colour}.png"]}})
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "items.jsonl").write_text(json.dumps({"text": "a red square", "images": ["pictures/red.png"]}) + "\n")
    (recipe,) = [block for language, block in BLOCKS if language == "yaml"]
    (folder / "recipe.yaml").write_text(recipe)
    tiny_backbone("qwen2_vl", folder / yaml.safe_load(recipe)["model"]["path"])
    return folder


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    start = subprocess.run
    if command[0] == "pdfx" and command[1] != "shards":
        start, command = warm.run, [sys.executable, "-m", *command]
    done = start(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.process
@pytest.mark.timeout(900)
def test_every_command_and_the_python_code_run_in_the_readmes_order(folder):
    for language, block in BLOCKS:
        if language == "python":
            assert "torch.Size([1, 4, 32])" in run([sys.executable, "-c", block], folder)
        for command in block.splitlines() if language == "bash" and block.strip() not in MAKE else ():
            words = command.split()
            if words[0] == "deepspeed":
                # The real launcher and recipe; only the sizes are those of a test.
                words = ["deepspeed", "--num_accelerators", "2", *words[1:], *SMALL]
            run(words, folder)
    assert (folder / "runs/first/metrics.jsonl").read_text().count("\n") >= 1
    parts = [
        json.loads((folder / "shards" / part / "index.json").read_text())["samples"]
        for part in ("all", "train", "test")
    ]
    assert parts[0] == 32 == parts[1] + parts[2] and 0 < parts[2] < parts[1]
    assert json.loads((folder / "metrics.json").read_text())["queries"] == parts[2]
    assert "evaluation/query_to_target/fused/recall@1" in (folder / "runs/first/metrics.jsonl").read_text()
    assert (folder / "embeddings.safetensors").stat().st_size > 0 and "<html" in (folder / "report.html").read_text()


@pytest.mark.process
def test_the_make_targets_of_the_readme_exist():
    assert MAKE == ["make quickstart", "make test"]
    for command in MAKE:
        assert shutil.which("make")
        plan = subprocess.run(
            [*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert ".venv/bin/python" in plan


def test_every_link_of_the_readme_leads_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links and all((ROOT / link).exists() for link in links)
