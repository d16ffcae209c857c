"""The commands before and after training: ``init``, ``checkpoints`` and ``convert``."""

from __future__ import annotations

import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from pdfx.cli.shared import JsonOption, ProgressBar, give_json, prints_json
from pdfx.config.run_files import CONFIG, RECIPES, SHIPPED
from pdfx.errors import UserError
from pdfx.host.console import console

RunArgument = Annotated[Path, typer.Argument(help="Directory of a run (train.output_dir).")]
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


def checkpoints(
    run: RunArgument,
    verify: Annotated[bool, typer.Option("--verify", help="Also read every file and compare its checksum.")] = False,
    json_file: JsonOption = None,
) -> None:
    """List a run's checkpoints: step, size, age, whether each is whole and which is best. Ends with 1 if one is not
    whole."""
    from pdfx.checkpoint.retention import Retention, list_checkpoints, retention_of, table_of
    from pdfx.config import load_config

    alone = prints_json(json_file)
    # Without a readable configuration there is no best checkpoint, but all else can be shown.
    rule = retention_of(load_config(run / CONFIG).train) if (run / CONFIG).is_file() else Retention(1)
    with ProgressBar() as bar:
        rows = list_checkpoints(run, rule, verify, bar.counter("verifying") if verify else None)
    if not alone:
        console().print(table_of(rows, rule, verify) if rows else f"{run} has no checkpoints.")
        for row in rows:
            if row.problem:
                print(row.problem)
            if row.strays:
                print(
                    f"Step {row.step:,} holds {len(row.strays)} files that its manifest does not list, and that "
                    f"nothing reads: {', '.join(row.strays[:3])}."
                )
    give_json([asdict(row) for row in rows], json_file)
    if any(row.problem for row in rows):
        raise typer.Exit(1)


def convert(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="Directory to write the model to.")],
    checkpoint: Annotated[
        str, typer.Option(help="A checkpoint's step, 'newest' (whole one) or 'best' (by train.metric_for_best_model).")
    ] = "newest",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Type of the written weights; the trained one by default."),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights, as 5GB, 500MB or 2GiB.")] = "5GB",
    adapter: Annotated[
        bool,
        typer.Option("--adapter", help="Write LoRA as a PEFT adapter and what else was trained, and not the backbone."),
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run the Python files of model.modules. Only for runs you trust."),
    ] = False,
    skip_check: Annotated[
        bool,
        typer.Option(
            "--skip-check", help="Do not re-embed with the result, for machines that cannot hold the whole model."
        ),
    ] = False,
) -> None:
    """Turn a run's checkpoint into a Hugging Face model directory (LoRA merged, no GPU needed), and check that it
    embeds as the trainer did."""
    from pdfx.convert import convert as run_conversion

    # So that what is half written goes when the job's time is up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    tell = console(sys.stderr, soft_wrap=True).print
    run_conversion(run, out, checkpoint, dtype, max_shard_size, adapter, not skip_check, tell, trust_remote_code)
    print(out)
