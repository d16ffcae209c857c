"""What is installed: the metadata, the wheel, and what a user without a checkout can do with it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from tiny_models import picture, tiny_backbone

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/installing.md").read_text(encoding="utf-8")
INSTALL, WORK = (block.splitlines() for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL))
(RECIPE,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
SMALL = {
    "model": {"prefix": {"length": 4}},
    "data": {"num_workers": 0},
    "objective": {"recent": {"rows": 64}},
    "train": {"max_steps": 2, "save_steps": 2, "eval_steps": 2, "warmup_steps": 1}
    | {"per_device_train_batch_size": 4, "bf16": False, "tensorboard": False},
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INDIRECT = {"torchvision": "transformers' image processors", "tensorboard": "torch.utils.tensorboard"}
"""What is declared though only other packages import it, and which."""
BROUGHT = {"pydantic-core": "pydantic", "yarl": "aiohttp"}
"""What is imported though another package brings it, and which."""


def environment(*folders: Path) -> dict[str, str]:
    """Nothing of the checkout, and the programs of these folders first."""
    path = os.pathsep.join([*map(str, folders), str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"PATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(command: list, folder: Path, *programs: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment(*programs),
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, because a build leaves files beside its sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pdfx", "data_tools", "launch", "ds_configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-index", "--no-deps"]
    run([*pip, "--no-build-isolation", "--wheel-dir", out, source], source)
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """The programs of a virtual environment with the wheel, and with the dependencies of this one.

    A folder that a .pth file names is searched, but its own .pth files are not read: so an editable installation of
    the checkout does not count there.
    """
    venv = tmp_path_factory.mktemp("venv")
    run([sys.executable, "-m", "venv", "--without-pip", venv], venv)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", venv / "bin/python"]
    run([*pip, "install", "--quiet", "--no-index", "--no-deps", wheel], venv)
    return venv / "bin"


@pytest.mark.process
@pytest.mark.timeout(900)
def test_the_wheel_alone_is_enough_to_train_convert_and_evaluate_as_documented(programs, wheel, tmp_path):
    (tmp_path / "pictures").mkdir()
    with (tmp_path / "records.jsonl").open("w") as stream:
        for number in range(30):
            picture(number).save(tmp_path / f"pictures/{number}.png")
            record = {"query": {"text": f"picture {number}"}, "target": {"images": [f"{number}.png"]}}
            stream.write(json.dumps(record) + "\n")
    pip, init, change = INSTALL
    assert pip == f"pip install {wheel.name}" and change == "cd first"
    assert run(["python", "-c", "import pdfx; print(pdfx.__file__)"], tmp_path, programs).startswith(
        str(programs.parent)
    )
    assert "srun.sbatch" in run(init.split(), tmp_path, programs)
    folder = tmp_path / "first"
    tree = yaml.safe_load(RECIPE)
    tiny_backbone("qwen2_vl", folder / tree["model"]["path"])
    for section, values in SMALL.items():
        tree[section] = tree.get(section, {}) | values
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    printed = [run(command.split(), folder, programs) for command in WORK]
    assert "fused" in printed[-1]
    assert (folder / "runs/first/metrics.jsonl").read_text().count("\n") >= 1
    assert "alpha: 64" in (folder / "runs/first/config.yaml").read_text()
    assert (folder / "exported/model.safetensors").stat().st_size > 0


@pytest.mark.process
def test_the_job_scripts_and_the_recipe_of_a_folder_are_there_and_may_be_edited(programs, tmp_path):
    run(["pdfx", "init", "folder", "--recipe", "llava-1.6-7b-hr"], tmp_path, programs)
    names = {path.name for path in (ROOT / "launch/slurm").iterdir()}
    assert {path.name for path in (tmp_path / "folder/launch/slurm").iterdir()} == names
    for script in sorted((tmp_path / "folder/launch/slurm").glob("*.sbatch")):
        assert os.access(script, os.W_OK)
        named = set(re.findall(r"(?:source|bash) (launch/\S+)", script.read_text()))
        assert named and all((tmp_path / "folder" / path).is_file() for path in named)
    script = "import pdfx; print(pdfx.load_config('folder/recipe.yaml').inputs.image_grid_pinpoints)"
    assert run(["python", "-c", script], tmp_path, programs) == "[(1344, 1344)]\n"


@pytest.mark.process
def test_the_launchers_entry_is_in_the_wheel(programs, tmp_path):
    assert "--dry-run" in run(["python", "-m", "pdfx.train", "--help"], tmp_path, programs)
    assert "init" in run(["pdfx", "--help"], tmp_path, programs)


@pytest.mark.process
def test_an_installed_package_brings_its_types_and_one_version(programs, tmp_path):
    script = "import importlib.metadata as m, pdfx, data_tools, pathlib\n"
    script += "print([(pathlib.Path(p.__file__).parent / 'py.typed').is_file() for p in (pdfx, data_tools)])\n"
    script += "print(m.version('pdfx') == pdfx.__version__)"
    assert run(["python", "-c", script], tmp_path, programs) == "[True, True]\nTrue\n"


def imported() -> set[str]:
    """The top-level packages that the product imports, its own and the standard library's left out."""
    names = set()
    for path in (path for top in ("pdfx", "data_tools") for path in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"pdfx", "data_tools"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_metadata_declares_what_the_product_imports_and_nothing_else():
    declared = {normal(Requirement(line).name) for line in PROJECT["dependencies"]}
    optional = {
        normal(Requirement(line).name)
        for extra in ("flash", "remote")
        for line in PROJECT["optional-dependencies"][extra]
    }
    owners = packages_distributions()
    used = {normal(owners[name][0]) if name in owners else normal(name) for name in imported()}
    assert used - declared - optional == set(BROUGHT)
    for name, owner in BROUGHT.items():
        assert owner in declared | optional
        assert name in {normal(Requirement(line).name) for line in requires(owner)}
    assert declared - used == set(INDIRECT)
