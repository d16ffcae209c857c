"""The command ``pdfx init``: a folder to train in, from what the package ships."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from pdfx.config.run_files import RECIPES, SHIPPED
from pdfx.errors import UserError

EXAMPLES = ("pdfx init my-run", "pdfx init my-run --recipe llava-1.6-7b-lr")
# The quickstart's recipe needs its programs, which a checkout has.
NAMES = sorted({path.stem for path in RECIPES.glob("*.yaml")} - {"quickstart"})
NEXT = """Next:
  cd {folder}
  pdfx shards build records.jsonl --images pictures --out shards/train
  # In recipe.yaml, set data.train, data.evaluation and what else differs from {recipe}.
  pdfx train recipe.yaml --dry-run
  torchrun --nproc-per-node 8 -m pdfx.train recipe.yaml
  # Under SLURM: sbatch --gpus-per-node 8 --ntasks-per-node 8 --cpus-per-task 12 launch/slurm/srun.sbatch recipe.yaml"""


def init(
    folder: Annotated[Path, typer.Argument(help="A folder that is empty or does not exist.")],
    recipe: Annotated[
        str, typer.Option(help=f"What to start from: {', '.join(NAMES)}.", autocompletion=lambda: NAMES)
    ] = "qwen2-vl-2b",
) -> None:
    """Fill an empty folder with a recipe to edit, the recipe that it extends, and job scripts for SLURM."""
    if recipe not in NAMES:
        raise UserError(f"There is no recipe '{recipe}' to start from; give one of {', '.join(NAMES)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; give another folder.")
    # copyfile: installed files may be read-only, and the copies are there to be edited.
    for place in ("launch/slurm", "launch/recipes/base"):
        shutil.copytree(SHIPPED / place, folder / place.replace("launch/recipes/", ""), copy_function=shutil.copyfile)
    shutil.copyfile(RECIPES / f"{recipe}.yaml", folder / "recipe.yaml")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(path)
    print(NEXT.format(folder=folder, recipe=recipe))
